"""Training batches from token files: from disk beside from memory, and beside torch's DataLoader over the same file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.benchmark import Options, main
from bench.measure import alternate, timed
from bench.row import Row
from modelcore.data.loader import TrainingBatches, WindowSampler
from modelcore.data.shards import ShardFile, SplitMeta, TokenSplit

BATCH_SIZE, LENGTH = 32, 1024
IN_MEMORY, DATALOADER = "ours in memory", "torch DataLoader, in memory"
FILE = "00000.bin"


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """The same windows as torch's DataLoader takes them: one by one, by number.

    Args:
        tokens: All tokens.
        length: Tokens a window.
    """

    def __init__(self, tokens: npt.NDArray[np.uint16], length: int) -> None:
        self._tokens, self._length = tokens, length

    def __len__(self) -> int:
        return len(self._tokens) // self._length - 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self._length
        window = torch.from_numpy(self._tokens[start : start + self._length + 1].astype(np.int64))
        return window[:-1], window[1:]


def rows(options: Options) -> Iterator[Row]:
    """Tokens a second of batches of 32 x 1,024 in random order; from disk the file is dropped from memory first.

    DataLoader works in this process: its workers would need another core each.
    """
    batches, length = (4, 16) if options.small else (200, LENGTH)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # /tmp is memory on some machines
        folder = Path(name)
        split = _write(folder, BATCH_SIZE * length * (batches + 2))
        source = TrainingBatches(split, WindowSampler(split.n_tokens, length, 0), BATCH_SIZE)
        windows = Windows(np.memmap(folder / FILE, dtype="<u2", mode="r"), length)
        theirs = DataLoader(windows, BATCH_SIZE, shuffle=True, drop_last=True)

        def ours() -> None:
            for step in range(batches):
                source.batch(step)

        def peer() -> None:
            for _ in zip(range(batches), theirs, strict=False):
                pass

        seconds = alternate(
            {"ours": _after(lambda: _drop(folder / FILE), ours), IN_MEMORY: timed(ours), DATALOADER: timed(peer)},
            runs=1 if options.small else 5,
        )
    tokens = batches * BATCH_SIZE * length
    speed = {who: tokens / each.median for who, each in seconds.items()}
    name = f"loader batches of {BATCH_SIZE} x {length:,}"
    yield Row(name, "from disk", speed["ours"], "tok/s", IN_MEMORY, speed[IN_MEMORY])
    yield Row(name, "in memory", speed[IN_MEMORY], "tok/s", DATALOADER, speed[DATALOADER])


def _after(prepare: Callable[[], object], work: Callable[[], object]) -> Callable[[], float]:
    """Times ``work`` alone."""

    def run() -> float:
        prepare()
        return timed(work)()

    return run


def _write(folder: Path, count: int) -> TokenSplit:
    """Random tokens in a file."""
    tokens = np.random.default_rng(0).integers(50_257, size=count, dtype=np.uint16)
    with open(folder / FILE, "wb") as file:
        file.write(tokens.tobytes())
        file.flush()
        os.fsync(file.fileno())
    meta = SplitMeta(1, count, count, [ShardFile(FILE, tokens.nbytes, "")], ShardFile("", 0, ""))
    return TokenSplit(folder, "train", meta, "<u2", 50_257, "")


def _drop(path: Path) -> None:
    """Takes a file out of the system's memory."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main(rows)
