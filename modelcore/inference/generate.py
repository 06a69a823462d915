"""Generation with the key-value cache: the prompts are read once, then one token at a time follows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from modelcore.errors import InputError
from modelcore.gptx import GPT, KVCache, evaluating
from modelcore.inference.captured import CapturedStep
from modelcore.inference.chooser import TokenChooser
from modelcore.inference.prefill import read_prompts
from modelcore.inference.samplers import SamplingConfig

if TYPE_CHECKING:
    from modelcore.adapters import AdapterChoice

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
    sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    max_tokens: int | Sequence[int] = 128,
    eos_id: int | None = None,
    stopped: Callable[[int, int], bool] | None = None,
    adapters: AdapterChoice | None = None,
) -> list[Generation]:
    """Continues every prompt; prompts may differ in length, in settings and in how much is asked for.

    Each prompt draws from a generator of its own, seeded with its settings' ``seed``, and no step mixes rows. So a
    continuation is a function of its prompt, settings and seed, up to one thing: matrix products of another shape may
    round differently, and the logits of a row then differ in their last bits with the number of rows beside it
    (some 1e-6 in fp32 on a CPU). The token changes with that only if its two best candidates are as close as
    that; docs/generation.md says how often this was seen. Random numbers differ between kinds of device.

    Args:
        model: The model; dropout is off while it generates.
        prompts: Ids of each prompt, at least one each.
        sampling: How tokens are chosen: for all prompts, or one a prompt.
        max_tokens: Most tokens to add: to each prompt, or one number a prompt. A text ends earlier where the
            context is full.
        eos_id: The token that ends a text, or None to go on to the end.
        stopped: Called with a prompt's index and each of its new tokens; True ends that text there (``stop``).
        adapters: Which adapter each prompt is continued with, from
            :meth:`modelcore.adapters.AdapterSwitch.choose`; the switch must be the model's.

    Returns:
        One :class:`Generation` a prompt, in order.

    Raises:
        InputError: If a prompt is empty, does not fit the context or holds an id outside the vocabulary, if the numbers
            of prompts and settings differ, or if the model's logits are no numbers.
    """
    tokens: list[list[int]] = [[] for _ in prompts]
    reasons: list[FinishReason] = ["length"] * len(prompts)
    for step in _steps(model, prompts, sampling, max_tokens, eos_id, stopped, adapters):
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
    adapters: AdapterChoice | None = None,
) -> Generator[int, None, FinishReason]:
    """Yields the ids that follow one prompt as they come; arguments and errors as in :func:`generate`.

    Returns:
        The finish reason, as the generator's return value.
    """
    for step in _steps(model, [prompt], sampling, max_tokens, eos_id, adapters=adapters):
        _, token, reason = step[0]
        if token is not None:
            yield token
        if reason is not None:
            return reason
    raise AssertionError("generation ended without a reason")  # pragma: no cover


_Event = tuple[int, int | None, FinishReason | None]
"""A prompt's index, its new token (None: end of text, not shown) and, with the last one, why it ended."""


def _steps(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig | Sequence[SamplingConfig] | None,
    max_tokens: int | Sequence[int],
    eos_id: int | None,
    stopped: Callable[[int, int], bool] | None = None,
    adapters: AdapterChoice | None = None,
) -> Iterator[list[_Event]]:
    """One list of events a step, for the prompts that have not ended before."""
    if sampling is None or isinstance(sampling, SamplingConfig):
        sampling = [sampling or SamplingConfig()] * len(prompts)
    if isinstance(max_tokens, int):
        max_tokens = [max_tokens] * len(prompts)
    for name, given in (("sampling settings", sampling), ("values of max_tokens", max_tokens)):
        if len(given) != len(prompts):
            raise InputError(f"{len(given)} {name} for {len(prompts)} prompts; give one for all, or one a prompt")
    check_prompts(model, prompts, max_tokens)
    if prompts:
        with evaluating(model):
            yield from _run(model, prompts, sampling, max_tokens, eos_id, stopped, adapters)


@torch.inference_mode()
def _run(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[SamplingConfig],
    max_tokens: Sequence[int],
    eos_id: int | None,
    stopped: Callable[[int, int], bool] | None,
    adapters: AdapterChoice | None,
) -> Iterator[list[_Event]]:
    context = model.config.context_length
    # How many tokens each prompt may get. The last one is never fed back, so it needs no place in the context.
    room = [min(most, context + 1 - len(prompt)) for prompt, most in zip(prompts, max_tokens, strict=True)]
    slots = max(len(prompt) + most - 1 for prompt, most in zip(prompts, room, strict=True))
    texts = _Texts(room, model.config.vocab_size, eos_id, stopped)
    chooser = TokenChooser(samplings, prompts, model.config.vocab_size, model.device)
    captured = CapturedStep.lend(model, len(prompts), slots, max(room)) if adapters is None else None
    if captured is None:
        yield from _one_by_one(model, prompts, texts, chooser, slots, adapters)
        return
    try:
        first = chooser.choose(model.head(read_prompts(model, prompts, captured.cache)))  # (B,)
        yield texts.take(first.tolist())
        # Rows stay where they are: what those that ended go on with is not looked at.
        for tokens in captured.tokens(first, chooser, texts.most_left):
            yield texts.take([tokens[row] for row in texts.rows])
            if not texts.rows:
                return
    finally:
        captured.give_back(model)


def _one_by_one(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    texts: _Texts,
    chooser: TokenChooser,
    slots: int,
    adapters: AdapterChoice | None,
) -> Iterator[list[_Event]]:
    """Every token by the model's own modules; texts that have ended leave the batch."""
    cache = KVCache(model.config, len(prompts), slots, dtype=model.embedding.weight.dtype, device=model.device)
    # Entered for each pass alone: between two of them the model may be used for something else.
    chosen_adapters: AbstractContextManager[object] = adapters or nullcontext()
    with chosen_adapters:
        last = read_prompts(model, prompts, cache)  # (B, d_model)
    while True:
        with chosen_adapters:
            logits = model.head(last)  # (B, vocab_size)
        chosen = chooser.choose(logits)  # (B,)
        rows = texts.rows
        yield texts.take(chosen.tolist())  # one look at the device
        if not texts.rows:
            return
        if len(texts.rows) < len(rows):  # rows that ended leave the batch: whatever is kept by row follows here
            alive = [rows.index(row) for row in texts.rows]
            chooser.keep(alive)
            cache.keep(alive)
            if adapters is not None:
                chosen_adapters = adapters = adapters.kept(alive)
            chosen = chosen[torch.tensor(alive, device=model.device)]
        chooser.record(chosen)
        with chosen_adapters:
            last = model.hidden(chosen[:, None], cache)[:, 0]  # (B, d_model)
        cache.advance(1)


class _Texts:
    """What ends each text.

    Attributes:
        rows: The prompts that go on, in order.
    """

    def __init__(
        self, room: list[int], vocab_size: int, eos_id: int | None, stopped: Callable[[int, int], bool] | None
    ) -> None:
        self.rows = list(range(len(room)))
        self._room, self._vocab_size, self._eos_id, self._stopped = room, vocab_size, eos_id, stopped
        self._produced = 0

    def take(self, tokens: list[int]) -> list[_Event]:
        """Gives each of :attr:`rows` its new token, and leaves those that go on."""
        self._produced += 1
        events: list[_Event] = []
        going_on: list[int] = []
        for row, token in zip(self.rows, tokens, strict=True):
            if token == self._vocab_size:
                raise broken_weights("the model")
            if token == self._eos_id:
                events.append((row, None, "eos"))
            elif self._stopped is not None and self._stopped(row, token):
                events.append((row, token, "stop"))
            elif self._produced == self._room[row]:
                events.append((row, token, "length"))
            else:
                events.append((row, token, None))
                going_on.append(row)
        self.rows = going_on
        return events

    def most_left(self) -> int:
        """Most tokens after its first that any text which goes on may get in all."""
        return max((self._room[row] for row in self.rows), default=1) - 1


def broken_weights(name: str) -> InputError:
    """What is said of a model whose logits are NaN or infinite."""
    return InputError(f"{name}'s logits are not finite numbers; its weights are broken")


def check_prompts(model: GPT, prompts: Sequence[Sequence[int]], max_tokens: Sequence[int]) -> None:
    """Refuses what cannot be continued.

    Raises:
        InputError: As :func:`generate`.
    """
    if max_tokens and min(max_tokens) < 1:
        raise InputError(f"max_tokens is {min(max_tokens)}; it must be 1 or more")
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
