"""Saving and loading: a training run's state beside ``torch.save`` and ``torch.load``, a model beside transformers.

Ours flushes what it saves to the disk, writes SHA-256 sums of a run's state, and checks them before it loads one. The
peers are given the flush, and do neither of the others. Everyone loads what the system still holds in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.benchmark import Options, main
from bench.cpu.decoding import make_model
from bench.measure import alternate, timed
from bench.row import Row
from modelcore.atomic import atomic_directory, sync
from modelcore.gptx import GPT
from modelcore.models import load_model, save_model
from modelcore.training import TrainingSettings
from modelcore.training.optimizer import Optimizer
from modelcore.training.parallel import Ranks
from modelcore.training.state import resume, save_checkpoint


def rows(options: Options) -> Iterator[Row]:
    """Gigabytes a second, with gpt2-small and AdamW's state of it."""
    model = make_model(options)
    runs = 1 if options.small else 3
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # /tmp is memory on some machines
        yield from _state(model, Path(folder), runs)
        yield from _weights(model, Path(folder), runs)


def _state(model: GPT, folder: Path, runs: int) -> Iterator[Row]:
    optimizer = Optimizer(model, TrainingSettings(steps=1, batch_size=1, sequence_length=1, learning_rate=1e-4))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1.0, torch.ones(()))
    optimizer.zero_grad()
    parts = {"optimizer": optimizer}
    size = sum(each.nbytes for each in (*model.parameters(), *optimizer.state_tensors().values()))
    checkpoints, file = folder / "checkpoints", folder / "state.pt"

    def save() -> None:
        save_checkpoint(checkpoints, 1, model, parts, identity={}, progress={}, random={}, keep=1)

    def torch_save() -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_tensors()}, file)
        sync(file)

    def load() -> None:
        resume(checkpoints, model, parts, identity={}, ranks=Ranks())

    def torch_load() -> None:
        state: dict[str, Any] = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_tensors(state["optimizer"])

    name = "checkpoints of a run, gpt2-small with AdamW"
    yield _row(name, "save", size, save, "torch.save", torch_save, runs)
    yield _row(name, "load", size, load, "torch.load", torch_load, runs)


def _weights(model: GPT, folder: Path, runs: int) -> Iterator[Row]:
    from transformers import AutoModelForCausalLM

    from bench.cpu.hugging_face import as_huggingface

    peer = as_huggingface(model)
    size = sum(each.nbytes for each in model.parameters())
    native, exported = folder / "native", folder / "exported"
    tokens = torch.zeros(1, 1, dtype=torch.int64)

    def save() -> None:
        with atomic_directory(native) as fresh:
            save_model(fresh, model, None)

    def save_pretrained() -> None:
        peer.save_pretrained(exported)
        for path in exported.iterdir():
            sync(path)

    # Weights may be mapped from the file and read only when they are used: so they are, once.
    @torch.inference_mode()
    def load() -> None:
        load_model(native)(tokens)

    @torch.inference_mode()
    def from_pretrained() -> None:
        AutoModelForCausalLM.from_pretrained(exported)(input_ids=tokens)

    name = "checkpoints of a model, gpt2-small"
    yield _row(name, "save", size, save, "save_pretrained", save_pretrained, runs)
    yield _row(name, "load and first pass", size, load, "from_pretrained", from_pretrained, runs)


def _row(
    name: str, metric: str, size: int, ours: Callable[[], None], peer: str, theirs: Callable[[], None], runs: int
) -> Row:
    seconds = alternate({"ours": timed(ours), peer: timed(theirs)}, runs=runs)
    speed = {who: size / each.median / 1e9 for who, each in seconds.items()}
    os.sync()  # what is still to be written must not slow what comes next
    return Row(name, metric, speed["ours"], "GB/s", peer, speed[peer])


if __name__ == "__main__":
    main(rows)
