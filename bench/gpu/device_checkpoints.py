"""Saving and loading a run's state from the device: ours beside ``torch.save`` and ``torch.load``.

Ours writes SHA-256 sums and checks them before it loads; the peer does neither. Both flush what they save to the disk,
and both load what the system still holds in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.benchmark import Options, main
from bench.gpu.training import our_settings
from bench.gpu.work import GPT2, build, device_of, synchronize
from bench.measure import alternate, timed
from bench.row import Row
from modelcore.training.optimizer import Optimizer
from modelcore.training.parallel import Ranks
from modelcore.training.state import resume, save_checkpoint


def rows(options: Options) -> Iterator[Row]:
    """Bytes of weights and optimizer state a second."""
    work, device = GPT2.at(options), device_of(options)
    model = build(work.config, device)
    optimizer = Optimizer(model, our_settings(work, options))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1.0, torch.ones((), device=device))
    optimizer.zero_grad()
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *optimizer.state_tensors().values()))

    with tempfile.TemporaryDirectory() as scratch:
        folder, file = Path(scratch) / "checkpoints", Path(scratch) / "state.pt"

        def save() -> None:
            parts = {"optimizer": optimizer}
            save_checkpoint(folder, 1, model, parts, identity={}, progress={}, random={}, keep=1)

        def load() -> None:
            resume(folder, model, {"optimizer": optimizer}, identity={}, ranks=Ranks())

        def torch_save() -> None:
            with open(file, "wb") as open_file:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_tensors()}, open_file)
                open_file.flush()
                os.fsync(open_file.fileno())

        def torch_load() -> None:
            state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_tensors(state["optimizer"])

        for metric, ours, theirs in (("save", save, torch_save), ("load", load, torch_load)):
            work_of = {"ours": ours, f"torch.{metric}": theirs}
            taken = alternate({who: timed(each, lambda: synchronize(device)) for who, each in work_of.items()}, runs=3)
            speed = {who: size / seconds.median / 1e9 for who, seconds in taken.items()}
            yield Row(
                "device_checkpoints GPT-2 124M",
                metric,
                speed["ours"],
                "GB/s",
                f"torch.{metric}",
                speed[f"torch.{metric}"],
            )


if __name__ == "__main__":
    main(rows)
