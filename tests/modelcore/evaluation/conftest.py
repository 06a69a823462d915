"""What the evaluation's tests share: models that can be computed with a pencil, and a small run's folders."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from modelcore.gptx import GPT, GPTConfig


class TokenList:
    """A split of tokens in memory."""

    def __init__(self, tokens, vocab_size: int) -> None:
        self.tokens, self.vocab_size = np.asarray(tokens, dtype=np.int64), vocab_size
        self.n_tokens, self.n_bytes = len(self.tokens), 3 * len(self.tokens)

    def window(self, start: int, length: int) -> np.ndarray:
        assert 0 <= start <= start + length <= self.n_tokens
        return self.tokens[start : start + length].copy()


@dataclass(frozen=True)
class Chain:
    """A Markov chain: ``table[a, b]`` is the probability that b follows a."""

    table: np.ndarray

    def sample(self, n_tokens: int, seed: int) -> TokenList:
        """Tokens drawn from the chain, wrapped around: the first follows the last, as a split's first token does."""
        rng = np.random.default_rng(seed)
        cumulative = self.table.cumsum(axis=1)
        tokens = [0]
        for u in rng.random(n_tokens):
            tokens.append(min(int(np.searchsorted(cumulative[tokens[-1]], u)), len(self.table) - 1))
        return TokenList([*tokens[1:-1], 0], len(self.table))

    def model(self, temperature: float = 1.0) -> GPT:
        """A transformer whose next-token distribution is softmax(log table[last token] / temperature), exactly."""
        size = len(self.table)
        model = GPT(GPTConfig(size, 32, 1, size, 2, 2, 8)).eval()
        with torch.no_grad():
            for parameter in (model.blocks[0].attention.out.weight, model.blocks[0].feedforward.down.weight):
                parameter.zero_()  # nothing but the embedding reaches the head
            model.embedding.weight.copy_(torch.eye(size))
            scale = float(model.hidden(torch.zeros(1, 1, dtype=torch.long)).max())  # the norm's, of a one-hot vector
            model.head.weight.copy_(torch.from_numpy(np.log(self.table).T / (temperature * scale)))
        return model


@pytest.fixture(scope="session")
def chain() -> Chain:
    return Chain(np.random.default_rng(0).dirichlet(np.full(24, 0.3), size=24) * 0.99 + 0.01 / 24)


@pytest.fixture
def warnings_logged(monkeypatch) -> list[str]:
    """What modelcore.evaluation.tasks warns of meanwhile."""
    from modelcore.evaluation import tasks

    messages: list[str] = []
    monkeypatch.setattr(tasks.logger, "warning", lambda text, *values: messages.append(text % values))
    return messages
