"""Generation with the key-value cache: the prompts are read once, then one token at a time follows."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modelcore.errors import InputError
from modelcore.gptx import GPT, KVCache
from modelcore.inference.samplers import SamplingConfig, adjust, draw, greedy

FinishReason = Literal["eos", "stop", "length"]
"""Why a text ended: the model ended it, a stop string was met, or the tokens asked for or the context ran out."""


@dataclass(frozen=True)
class Generation:
    """What followed a prompt.

    Attributes:
        tokens: The new ids, without the prompt and without the end-of-text token.
        finish_reason: Why there are no more.
    """

    tokens: list[int]
    finish_reason: FinishReason


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig | None = None,
    max_tokens: int = 128,
    eos_id: int | None = None,
) -> list[Generation]:
    """Continues every prompt; prompts may differ in length.

    Args:
        model: The model; dropout is off while it generates.
        prompts: Ids of each prompt, at least one each.
        sampling: How tokens are chosen. Each prompt draws from a generator of its own, seeded with
            ``sampling.seed``: its continuation does not depend on the other prompts.
        max_tokens: Most tokens to add to each prompt. A text ends earlier where the context is full.
        eos_id: The token that ends a text, or None to go on to the end.

    Returns:
        One :class:`Generation` a prompt, in order.

    Raises:
        InputError: If a prompt is empty, does not fit the context or holds an id outside the vocabulary.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    reasons: list[FinishReason] = ["length"] * len(prompts)
    for step in _steps(model, prompts, sampling or SamplingConfig(), max_tokens, eos_id):
        for row, token, reason in step:
            if token is not None:
                tokens[row].append(token)
            if reason is not None:
                reasons[row] = reason
    return [Generation(*pair) for pair in zip(tokens, reasons, strict=True)]


def stream(
    model: GPT,
    prompt: Sequence[int],
    sampling: SamplingConfig | None = None,
    max_tokens: int = 128,
    eos_id: int | None = None,
) -> Generator[int, None, FinishReason]:
    """Yields the ids that follow one prompt as they come; arguments and errors as in :func:`generate`.

    Returns:
        The finish reason, as the generator's return value.
    """
    for step in _steps(model, [prompt], sampling or SamplingConfig(), max_tokens, eos_id):
        _, token, reason = step[0]
        if token is not None:
            yield token
        if reason is not None:
            return reason
    raise AssertionError("generation ended without a reason")  # pragma: no cover


_Event = tuple[int, int | None, FinishReason | None]
"""A prompt's index, its new token (None: end of text, not shown) and, with the last one, why it ended."""


def _steps(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, max_tokens: int, eos_id: int | None
) -> Iterator[list[_Event]]:
    """One list of events a step, for the prompts that have not ended before."""
    _check(model, prompts, max_tokens)
    training = model.training
    model.eval()
    try:
        yield from _run(model, prompts, sampling, max_tokens, eos_id)
    finally:
        model.train(training)


@torch.inference_mode()
def _run(
    model: GPT, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, max_tokens: int, eos_id: int | None
) -> Iterator[list[_Event]]:
    if not prompts:
        return
    context, device = model.config.context_length, model.device
    lengths = [len(prompt) for prompt in prompts]
    # The last token of a text is never fed back, so it needs no slot.
    slots = min(context, max(lengths) + max_tokens - 1)
    cache = KVCache(model.config, len(prompts), slots, dtype=model.embedding.weight.dtype, device=device)
    generators = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
    tokens = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    tokens = tokens.to(device)
    seen = _seen(model, prompts) if sampling.repetition_penalty != 1.0 else None

    hidden = model.hidden(tokens, cache)  # (B, T, d_model)
    cache.advance(lengths)
    ends = torch.tensor(lengths, device=device) - 1
    last = hidden[torch.arange(len(prompts), device=device), ends]  # (B, d_model): each row's last real token
    rows = list(range(len(prompts)))
    produced = 0
    while rows:
        logits = adjust(model.head(last).float(), sampling, seen)  # (B, V)
        if sampling.temperature == 0.0:
            chosen = greedy(logits)
        else:
            chosen = draw(logits, torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]))
        # One look at the device a token: rows of NaN are marked with an id that does not exist.
        chosen = chosen.masked_fill(logits.isnan().any(dim=-1), model.config.vocab_size)
        produced += 1
        events: list[_Event] = []
        alive: list[int] = []
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            if token == model.config.vocab_size:
                raise InputError("the model's logits are not numbers (NaN); its weights are broken")
            if token == eos_id:
                events.append((row, None, "eos"))
            elif produced == max_tokens or lengths[row] + produced > context:
                events.append((row, token, "length"))
            else:
                events.append((row, token, None))
                alive.append(place)
        yield events
        if not alive:
            return
        if len(alive) < len(rows):  # rows that ended leave the batch
            rows = [rows[place] for place in alive]
            generators = [generators[place] for place in alive]
            cache.keep(alive)
            index = torch.tensor(alive, device=device)
            chosen = chosen[index]
            seen = seen[index] if seen is not None else None
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        last = model.hidden(chosen[:, None], cache)[:, 0]  # (B, d_model)
        cache.advance(1)


def _seen(model: GPT, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Which tokens each prompt holds, (batch, vocab) boolean."""
    seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool, device=model.device)
    for row, prompt in enumerate(prompts):
        seen[row, torch.tensor(prompt, device=model.device)] = True
    return seen


def _check(model: GPT, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; it must be 1 or more")
    context, vocab = model.config.context_length, model.config.vocab_size
    for number, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        if not len(prompt):
            raise InputError(f"{name} is empty; give at least one token (the end-of-text token starts a new text)")
        if len(prompt) > context:
            raise InputError(f"{name} has {len(prompt)} tokens, the model reads at most {context}; shorten it")
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            worst = min(prompt) if min(prompt) < 0 else max(prompt)
            raise InputError(
                f"{name} holds id {worst}, the model knows 0 to {vocab - 1}; use the tokenizer it was trained with"
            )
