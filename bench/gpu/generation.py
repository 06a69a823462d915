"""How generation is timed: whole calls, from a prompt that lies in memory to the last token on the device.

A call's tokens by its time are the rate, the reading of the prompt included; the median of several calls counts, and
the first ones, in which kernels are compiled, do not. A step reads all weights but the embedding's once, so the
memory's bandwidth by their bytes is the most steps a second that can be had: the roof.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bench.benchmark import Options
from bench.gpu import hugging_face
from bench.gpu.card import bandwidth
from bench.gpu.work import TINYLLAMA, device_of, synchronize
from bench.measure import timed
from modelcore.gptx import GPT
from modelcore.inference import SamplingConfig, generate, stream

TEMPERATURE, TOP_K = 0.8, 200


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        batch_size: Texts at once.
        new_tokens: Tokens that each is continued by.
        prompt_tokens: Tokens of each prompt.
    """

    batch_size: int
    new_tokens: int
    prompt_tokens: int = 16

    def at(self, options: Options) -> Request:
        """The request itself, or, where only the motions are gone through, one for few tokens."""
        return replace(self, new_tokens=8) if options.small else self

    def prompts(self, options: Options) -> list[list[int]]:
        """Random prompts."""
        shape = (self.batch_size, self.prompt_tokens)
        vocab_size = TINYLLAMA.at(options).config.vocab_size
        tokens: list[list[int]] = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0)).tolist()
        return tokens


def weight_bytes(model: nn.Module, embedding: str) -> int:
    """Bytes that a token reads: those of what the state dict holds, without the embedding, which is looked up.

    Args:
        model: A model whose cache is not made yet, where that is one of its buffers.
        embedding: The state dict's name of the embedding.
    """
    return sum(tensor.nbytes for name, tensor in model.state_dict().items() if name != embedding)


def figures(
    call: Callable[[], object],
    request: Request,
    weights: int,
    options: Options,
    first: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Times calls.

    Args:
        call: Continues all prompts of the request.
        request: What is asked for.
        weights: Bytes that a step reads, from :func:`weight_bytes`.
        options: What the benchmark is asked for.
        first: Gets the first token alone; None: not timed.
    """
    device = device_of(options)
    seconds = _median(call, device, options)
    rate = request.batch_size * request.new_tokens / seconds
    taken = {
        "throughput": rate,
        "share of the bandwidth roof": rate / request.batch_size * weights / bandwidth(device),
    }
    if first is not None:
        taken["first token"] = 1e3 * _median(first, device, options)
    return taken


def _median(call: Callable[[], object], device: torch.device, options: Options) -> float:
    run = timed(call, lambda: synchronize(device))
    warmup, runs = (1, 1) if options.small else (2, 5)
    return statistics.median([run() for _ in range(warmup + runs)][warmup:])


def time_ours(model: GPT, request: Request, options: Options) -> dict[str, float]:
    """Our figures: :func:`modelcore.inference.generate`, and the first token of ``stream`` where there is one text."""
    request = request.at(options)
    prompts = request.prompts(options)
    sampling = SamplingConfig(temperature=TEMPERATURE, top_k=TOP_K)
    alone = request.batch_size == 1

    def first() -> int:
        return next(stream(model, prompts[0], sampling, request.new_tokens))

    return figures(
        lambda: generate(model, prompts, sampling, request.new_tokens),
        request,
        weight_bytes(model, "embedding.weight"),
        options,
        first if alone else None,
    )


def time_hugging_face(request: Request, options: Options, cache: str) -> dict[str, float]:
    """The figures of transformers' ``generate`` in bf16.

    Args:
        request: What is asked for.
        options: What the benchmark is asked for.
        cache: Kind of cache: ``dynamic``, its default, or ``static``, with which it compiles the step by itself.
    """
    device, request = device_of(options), request.at(options)
    model = hugging_face.build(TINYLLAMA.at(options).config, device, torch.bfloat16).eval()
    prompts = torch.tensor(request.prompts(options), device=device)

    def generate(new_tokens: int) -> Any:
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            cache_implementation=cache,
        )

    made = generate(request.new_tokens).shape[1] - request.prompt_tokens
    assert made == request.new_tokens, f"{made} tokens came, not {request.new_tokens}"  # noqa: S101
    return figures(
        lambda: generate(request.new_tokens),
        request,
        weight_bytes(model, "model.embed_tokens.weight"),
        options,
        (lambda: generate(1)) if request.batch_size == 1 else None,
    )
