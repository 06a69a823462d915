"""A batch's tokens are chosen row by row: by each row's settings, seed and text, as if it were alone."""

import dataclasses
import itertools

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from modelcore.inference.chooser import TokenChooser
from modelcore.inference.samplers import SamplingConfig

VOCAB = 12
CPU = torch.device("cpu")
PROMPT = [1, 4, 4, 7]
LOGITS = 1.5 * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5))
SAID = int(LOGITS.argmax())  # the token that has followed the prompt, twice


class TakenOff:
    """What OpenAI's presence and frequency penalties take off the token that was said twice."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def __call__(self, ids, scores):
        scores = scores.clone()
        scores[:, SAID] -= self.amount
        return scores


@pytest.mark.parametrize(
    ("sampling", "processor"),
    [
        (SamplingConfig(), None),
        (SamplingConfig(temperature=0.6), TemperatureLogitsWarper(0.6)),
        (SamplingConfig(top_k=5), TopKLogitsWarper(5)),
        (SamplingConfig(top_p=0.8), TopPLogitsWarper(0.8)),
        (SamplingConfig(min_p=0.1), MinPLogitsWarper(0.1)),
        (SamplingConfig(typical_p=0.7), TypicalLogitsWarper(0.7)),
        (SamplingConfig(repetition_penalty=1.6), RepetitionPenaltyLogitsProcessor(1.6)),
        (SamplingConfig(presence_penalty=0.9), TakenOff(0.9)),
        (SamplingConfig(frequency_penalty=0.6), TakenOff(1.2)),
        (SamplingConfig(logit_bias={3: 1.0, 5: -100.0}), SequenceBiasLogitsProcessor([[[3], 1.0], [[5], -100.0]])),
    ],
    ids=lambda value: next(
        (f.name for f in dataclasses.fields(value) if getattr(value, f.name) != getattr(SamplingConfig(), f.name)),
        "plain",
    ) if isinstance(value, SamplingConfig) else "",
)  # fmt: skip
def test_draws_follow_the_distribution_of_hugging_faces_processor(sampling, processor, assert_distributed):
    """200 rows, each with a seed of its own, draw 100 tokens after the same text."""
    rows, said = 200, torch.tensor([[*PROMPT, SAID, SAID]])
    chooser = TokenChooser([dataclasses.replace(sampling, seed=s) for s in range(rows)], [PROMPT] * rows, VOCAB, CPU)
    for _ in range(2):
        chooser.record(torch.full((rows,), SAID))
    counts = torch.cat([chooser.choose(LOGITS.expand(rows, -1)) for _ in range(100)]).bincount(minlength=VOCAB)
    processors = LogitsProcessorList([processor] if processor else [])
    assert_distributed(counts, processors(said, LOGITS.clone()).double().softmax(-1)[0])


def test_neighbours_in_time_and_in_seed_are_independent_draws(assert_distributed):
    """Pairs have the distribution of two draws of their own."""
    chooser = TokenChooser([SamplingConfig(seed=s) for s in range(200)], [PROMPT] * 200, VOCAB, CPU)
    tokens = torch.stack([chooser.choose(LOGITS.expand(200, -1)) for _ in range(100)])  # (time, seeds)
    p = LOGITS.double().softmax(-1)[0]
    for first, second in ((tokens[0::2], tokens[1::2]), (tokens[:, 0::2], tokens[:, 1::2])):
        assert_distributed((first * VOCAB + second).flatten().bincount(minlength=VOCAB**2), torch.outer(p, p))


SETTINGS = [
    SamplingConfig(seed=1),
    SamplingConfig(seed=1, top_k=4),
    SamplingConfig(temperature=0.0),
    SamplingConfig(seed=2),
    SamplingConfig(seed=3, top_k=4, repetition_penalty=1.4),
    SamplingConfig(seed=1, top_k=4, logit_bias={2: 3.0}),
    SamplingConfig(seed=9, presence_penalty=1.0, frequency_penalty=0.5),
    SamplingConfig(seed=1),
]


def chosen_alone(row: int, logits: torch.Tensor) -> list[int]:
    """What the row's settings choose, step by step, without any other row."""
    chooser = TokenChooser([SETTINGS[row]], [[row]], VOCAB, CPU)
    tokens = []
    for step in logits:
        tokens.append(chooser.choose(step[row : row + 1]))
        chooser.record(tokens[-1])
    return torch.cat(tokens).tolist()


def test_rows_of_different_settings_choose_as_if_they_were_alone_while_others_leave():
    logits = 2 * torch.randn(12, len(SETTINGS), VOCAB, generator=torch.Generator().manual_seed(0))
    chooser = TokenChooser(SETTINGS, [[row] for row in range(len(SETTINGS))], VOCAB, CPU)
    rows = list(range(len(SETTINGS)))
    found: dict[int, list[int]] = {row: [] for row in rows}
    for number, step in enumerate(logits):
        tokens = chooser.choose(step[rows])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            found[row].append(token)
        if number in (3, 5, 8):  # one row leaves
            gone = number % len(rows)
            alive = [place for place in range(len(rows)) if place != gone]
            chooser.keep(alive)
            rows, tokens = [rows[place] for place in alive], tokens[alive]
        chooser.record(tokens)
    assert sorted(len(tokens) for tokens in found.values())[:3] == [4, 6, 9]
    for row, tokens in found.items():
        assert tokens == chosen_alone(row, logits)[: len(tokens)]


def test_a_row_without_a_finite_logit_is_marked_and_the_others_are_not():
    rows = list(itertools.chain.from_iterable([LOGITS] * 4))
    logits = torch.stack(rows)
    logits[1, 3], logits[3] = float("nan"), float("-inf")
    for sampling in (SamplingConfig(), SamplingConfig(temperature=0.0), SamplingConfig(top_k=2, top_p=0.9, min_p=0.1)):
        chosen = TokenChooser([sampling] * 4, [[1]] * 4, VOCAB, CPU).choose(logits).tolist()
        assert [token == VOCAB for token in chosen] == [False, True, False, True]
