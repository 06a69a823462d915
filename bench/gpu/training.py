"""How training is timed: ours through the loop that users run, a peer's step as its own users write it.

Both are timed alike. The clock is read after every few steps, when the device has done them; within such a window the
next step may be prepared while one runs, as in any real loop. A window's tokens by its time are a rate, the median of
the windows counts, and the first one, in which kernels are compiled, does not. Ours takes its batches from the CPU's
memory, a peer has them on the device already.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bench.benchmark import Options
from bench.gpu.work import Work, device_of, synchronize
from modelcore.gptx import GPT, pad_vocabulary
from modelcore.training import TrainingSettings, train
from modelcore.training.peak import peak_flops

LEARNING_RATE = 1e-4

_BATCHES = 8  # different ones, over and over


class RandomTokens:
    """Batches of random tokens that lie in the CPU's memory.

    Args:
        work: How large they are, and of which vocabulary.
    """

    def __init__(self, work: Work) -> None:
        shape = (_BATCHES, work.batch_size, work.sequence_length + 1)
        tokens = torch.randint(work.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        self._batches = [(each[:, :-1].contiguous(), each[:, 1:].contiguous()) for each in tokens]

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, (sequences, time) int64 each."""
        return self._batches[step % _BATCHES]


def windows(options: Options) -> tuple[int, int]:
    """How many windows are timed after the first one, and the steps of each."""
    return (2, 1) if options.small else (4, 5)


def our_settings(work: Work, options: Options, **settings: Any) -> TrainingSettings:
    """The library's own settings, a padded vocabulary, what a benchmark asks for, and last what the user asks for."""
    count, steps = windows(options)
    asked: dict[str, Any] = {
        "steps": (1 + count) * steps,
        "batch_size": work.batch_size,
        "sequence_length": work.sequence_length,
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "log_every": steps,
        "pad_vocab_to_multiple": 128,
    }
    return TrainingSettings(**(asked | settings | dict(options.settings)))


def time_ours(model: GPT, work: Work, options: Options, **settings: Any) -> dict[str, float]:
    """Our figures: :func:`modelcore.training.train`.

    Args:
        model: On the device; its parameters that require a gradient are trained.
        work: Its shape and the batches.
        options: What the benchmark is asked for.
        **settings: Training settings that differ from :func:`our_settings`'.
    """
    asked = our_settings(work, options, **settings)
    rates: list[float] = []
    train(
        pad_vocabulary(model, asked.pad_vocab_to_multiple),
        RandomTokens(work),
        asked,
        bytes_per_token=1.0,
        report=lambda step, metrics: rates.append(metrics["tokens_per_second"]),
        name="ours",
    )
    return _figures(work, rates[1:], model.device)


def time_peer(
    loss: Callable[[Tensor, Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    work: Work,
    options: Options,
    clip_norm: float = 1.0,
) -> dict[str, float]:
    """A peer's figures: autocast to bf16, fused AdamW, and clipping.

    Args:
        loss: Its mean loss, of inputs and targets.
        parameters: What is trained.
        work: The model's shape and the batches.
        options: What the benchmark is asked for.
        clip_norm: Largest norm of the gradient; 0: no clipping.
    """
    device = device_of(options)
    torch.set_float32_matmul_precision("high")
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    source = RandomTokens(work)
    batches = [[part.to(device) for part in source.batch(step)] for step in range(_BATCHES)]

    def step(number: int) -> None:
        inputs, targets = batches[number % _BATCHES]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss(inputs, targets)
        value.backward()  # type: ignore[no-untyped-call]
        if clip_norm:
            nn.utils.clip_grad_norm_(trained, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    count, steps = windows(options)
    rates = []
    for window in range(1 + count):
        synchronize(device)
        start = time.perf_counter()
        for number in range(steps):
            step(window * steps + number)
        synchronize(device)
        rates.append(steps * work.tokens / (time.perf_counter() - start))
    return _figures(work, rates[1:], device)


def _figures(work: Work, rates: list[float], device: torch.device) -> dict[str, float]:
    rate = statistics.median(rates)
    flops = work.config.flops_per_token(work.sequence_length)
    figures = {"throughput": rate, "MFU": rate * flops / peak_flops(device)}
    if device.type == "cuda":
        figures["peak memory"] = torch.cuda.max_memory_allocated(device) / 2**30
    return figures
