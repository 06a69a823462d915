"""The kernels choose the tokens that the rules of modelcore.inference.samplers leave, and draw as it does."""

import pytest
import torch

from modelcore.inference import SamplingConfig
from modelcore.inference.samplers import adjust, draw, greedy
from modelcore.kernels import sampling

RULES = [
    SamplingConfig(),
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=0.7, top_k=5),
    SamplingConfig(top_p=0.6),
    SamplingConfig(top_k=1),
    SamplingConfig(min_p=0.2),
    SamplingConfig(temperature=1.3, top_k=40, top_p=0.8, min_p=0.02),
]


def choose(logits, rules, uniform):
    """The kernels: token, and which tokens stay by rank and index."""
    rows, vocab = logits.shape
    device, pieces = logits.device, -(-vocab // 32)

    def column(values, dtype):
        return torch.tensor(values, dtype=dtype, device=device)

    heat = column([1 / (rule.temperature or 1) for rule in rules], torch.float32)
    top_k, top_p = (
        column([rule.top_k for rule in rules], torch.int32),
        column([rule.top_p for rule in rules], torch.float32),
    )
    min_p, still = (
        column([rule.min_p for rule in rules], torch.float32),
        column([not rule.temperature for rule in rules], torch.int32),
    )
    rank, index = column([0] * rows, torch.long), column([0] * rows, torch.int32)
    peak, tokens, lengths = (
        column([0.0] * rows, torch.float32),
        column([-1] * rows, torch.long),
        column([7] * rows, torch.int32),
    )
    best, where = (
        torch.empty(rows, pieces, dtype=torch.float64, device=device),
        torch.empty(rows, pieces, dtype=torch.int32, device=device),
    )
    bits = 16 if logits.dtype == torch.bfloat16 else 32
    sampling.find_cutoffs[(rows,)](
        logits, heat, top_k, top_p, rank, index, peak, vocab, n_bits=bits, block_v=256, early=False
    )
    sampling.find_best[(rows, pieces)](
        logits, uniform, heat, min_p, still, rank, index, peak, best, where, vocab, n_bits=bits, block_v=32, early=False
    )
    sampling.take_best[(rows,)](best, where, tokens, lengths, vocab, 8, pieces, block_p=8, early=False)
    assert lengths.tolist() == [7] * rows  # a full row stays within its slots
    return tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_rule_leads_to_the_token_that_the_ordinary_rule_leads_to(dtype, device):
    generator = torch.Generator().manual_seed(3)
    logits = torch.stack([torch.randperm(200, generator=generator) / 40 - 2 for _ in RULES]).to(device, dtype)
    for _ in range(2):
        uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64).to(device)
        expected = []
        for row, rule in enumerate(RULES):
            scores = adjust(logits[row : row + 1].float(), rule)
            expected.append(int(greedy(scores) if rule.temperature == 0 else draw(scores, uniform[row : row + 1])))
        assert choose(logits, RULES, uniform).tolist() == expected


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.temperature], ids=str)
def test_as_many_tokens_stay_as_by_the_ordinary_rule_and_as_likely_ones(rule, device):
    """Random numbers that make one token after the other the best, if it may be: each is drawn, or is forbidden.

    Many are equally likely. Which of these top-p keeps at its edge is open in the ordinary rule, whose sort is not
    stable; here it is those of the highest ids.
    """
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 24, generator=generator).mul(2).round().expand(24, 24).contiguous().to(device)
    uniform = torch.full((24, 24), 0.5, dtype=torch.float64, device=device)
    uniform.fill_diagonal_(2.0**-53)  # the smaller, the better
    allowed = adjust(logits[:1], rule)[0] > float("-inf")
    drawn = choose(logits, [rule] * 24, uniform) == torch.arange(24, device=device)
    assert torch.equal(logits[0, drawn].sort().values, logits[0, allowed].sort().values)
    edge = logits[0] == logits[0, drawn].min()
    assert not (drawn[edge].int().diff() < 0).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", [RULES[1], RULES[2], RULES[6]], ids=str)
def test_a_logit_that_is_no_number_gives_the_id_that_does_not_exist(rule, value, device):
    logits = torch.zeros(2, 200, device=device)
    logits[0, 77] = value
    logits[1] = float("-inf")
    uniform = torch.full((2, 200), 0.5, dtype=torch.float64, device=device)
    assert choose(logits, [rule] * 2, uniform).tolist() == [200, 200]
