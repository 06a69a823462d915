"""What the tests of inference share: small models that vary, and the chi-square test."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import chi2

from modelcore.gptx import GPT, GPTConfig


@pytest.fixture(scope="session")
def make_model() -> Callable[..., GPT]:
    """Models of random weights far from the small initial ones, so that continuations vary."""

    def make(positions="rope", *, seed=0, vocab=61, context=24, layers=2, width=48, std=0.25, window=None) -> GPT:
        generator = torch.Generator().manual_seed(seed)
        state = torch.get_rng_state()
        config = GPTConfig(vocab, context, layers, width, 6, 2, 64, positions=positions, sliding_window=window)
        model = GPT(config).eval()
        torch.set_rng_state(state)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=std, generator=generator)
        return model

    return make


@pytest.fixture(scope="session")
def assert_distributed() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Pearson's chi-square test at the 0.1 % level, of counts against probabilities of the same shape."""

    def check(counts: torch.Tensor, probabilities: torch.Tensor) -> None:
        counts, expected = counts.double().flatten(), probabilities.double().flatten() * counts.sum()
        assert counts[expected == 0].sum() == 0, "a forbidden token was drawn"
        # Cells of fewer than five expected draws are counted together, as the approximation asks.
        rare = expected < 5
        counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
        expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
        counts, expected = counts[expected > 0], expected[expected > 0]
        assert len(expected) > 1
        statistic = ((counts - expected) ** 2 / expected).sum().item()
        limit = chi2.ppf(0.999, len(expected) - 1)
        assert statistic < limit, f"chi-square is {statistic:.1f}, the limit {limit:.1f}"

    return check
