"""Training the default model, beside transformers' model of the same shape and weights."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from bench.benchmark import Options, in_fresh_process, main
from bench.cpu.processor import CPU, best_product
from bench.measure import alternate
from bench.row import Row
from modelcore.gptx import GPT
from modelcore.training import DEFAULT_RECIPE, TrainingSettings, load_recipe, train
from modelcore.training.precision import autocast, fast_kernels

MODULE = "bench.cpu.training"
VOCAB_SIZE = 2048  # the pipeline's default
PEER, PEER_AS_OURS, AS_IT_IS = "Hugging Face", "Hugging Face, our precision and kernels", "the recipe as it is"
NAME = f"training {DEFAULT_RECIPE}"


def rows(options: Options) -> Iterator[Row]:
    """Throughput, MFU and memory of the default recipe with AdamW on both sides, and throughput of the recipe as it is.

    The first peer computes in fp32, as transformers' Trainer does unless it is told otherwise; the second is the same
    model in the precision and under the kernels that our loop chooses on a CPU.
    """
    settings, recipes_own = our_settings(options, optimizer="adamw"), our_settings(options)
    model, batches = make_model(settings), Batches(settings)
    theirs = huggingface_speed(model, batches, settings)
    speeds = alternate(
        {
            "ours": lambda: our_speed(model, batches, settings),
            PEER: theirs,
            PEER_AS_OURS: lambda: theirs(as_ours=True),
            AS_IT_IS: lambda: our_speed(model, batches, recipes_own),
        },
        runs=1 if options.small else 7,
    )
    ours, peer = speeds["ours"].median, speeds[PEER].median
    for name in (PEER, PEER_AS_OURS):
        yield Row(f"{NAME}, AdamW", "throughput", ours, "tok/s", name, speeds[name].median)
    used = model.config.flops_per_token(settings.sequence_length) / best_product(options.small)
    yield Row(f"{NAME}, AdamW", "MFU", ours * used, "fraction", PEER, peer * used)
    memory = {part: in_fresh_process(MODULE, part, options)["peak_memory_mib"] for part in PARTS}
    yield Row(f"{NAME}, AdamW", "peak memory", memory["ours"], "MiB", PEER, memory["huggingface"])
    yield Row(f"{NAME}, {recipes_own.optimizer}", "throughput", speeds[AS_IT_IS].median, "tok/s")


def our_settings(options: Options, **settings: Any) -> TrainingSettings:
    """The default recipe's settings for a few steps, and what differs."""
    asked: dict[str, Any] = {"steps": 10, "eval_every": 0, "checkpoint_every": 0} | settings | dict(options.settings)
    if options.small:
        asked |= {"steps": 2, "batch_size": 2, "sequence_length": 16}
    return load_recipe(DEFAULT_RECIPE).with_training(**asked).training


def make_model(settings: TrainingSettings) -> GPT:
    """The default model with weights that are the same every time."""
    recipe = load_recipe(DEFAULT_RECIPE).with_training(sequence_length=settings.sequence_length)
    torch.manual_seed(0)
    return GPT(recipe.config(VOCAB_SIZE))


class Batches:
    """Random tokens, by number: the same for everyone."""

    def __init__(self, settings: TrainingSettings) -> None:
        shape = (8, settings.batch_size, settings.sequence_length + 1)
        self._tokens = torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(0))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (sequences, time) int64 each."""
        tokens = self._tokens[step % len(self._tokens)]
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def our_speed(model: GPT, batches: Batches, settings: TrainingSettings) -> float:
    """Tokens a second of the loop that the stage runs, its set-up apart."""
    history = train(model, batches, settings, bytes_per_token=1.0)
    return history.tokens / history.seconds


def huggingface_speed(model: GPT, batches: Batches, settings: TrainingSettings) -> Callable[..., float]:
    """What trains transformers' model and gives tokens a second, its set-up apart.

    A plain eager loop with clipping, a fused optimizer and no cache, as transformers' own Trainer has them; with
    ``as_ours=True`` in the precision and under the kernels that our loop chooses.
    """
    from bench.cpu.hugging_face import as_huggingface

    peer = as_huggingface(model).train()

    def speed(as_ours: bool = False) -> float:
        kernels: AbstractContextManager[object] = contextlib.nullcontext()
        cast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        if as_ours:
            kernels = fast_kernels(settings.precision, CPU, settings.sequence_length)
            cast = autocast(settings.precision, CPU)
        optimizer = torch.optim.AdamW(
            peer.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        with kernels:
            start = time.perf_counter()
            for step in range(settings.steps):
                with cast():
                    loss = huggingface_loss(peer, *batches.batch(step))
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(peer.parameters(), settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
            seconds = time.perf_counter() - start
        return settings.steps * settings.batch_size * settings.sequence_length / seconds

    return speed


def huggingface_loss(peer: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss by transformers' own loss function, of targets that are moved on already."""
    loss: Tensor = peer(input_ids=inputs, labels=targets, shift_labels=targets, use_cache=False).loss
    return loss


def _our_memory(options: Options) -> dict[str, Any]:
    settings = our_settings(options, optimizer="adamw")
    our_speed(make_model(settings), Batches(settings), settings)
    return _peak_memory()


def _huggingface_memory(options: Options) -> dict[str, Any]:
    settings = our_settings(options, optimizer="adamw")
    huggingface_speed(make_model(settings), Batches(settings), settings)()
    return _peak_memory()


def _peak_memory() -> dict[str, Any]:
    from modelcore.stages.stage import peak_memory_mib

    return {"peak_memory_mib": peak_memory_mib()}


PARTS = {"ours": _our_memory, "huggingface": _huggingface_memory}

if __name__ == "__main__":
    main(rows, PARTS)
