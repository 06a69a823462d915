"""Whether reading tokens from disk holds up training: steps with tokens from disk beside steps with them in memory.

Both in one run, some steps of the one after some of the other. The file is dropped from the page cache first.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from bench.benchmark import Options, main
from bench.gpu.training import RandomTokens, our_settings
from bench.gpu.work import GPT2, Work, build, device_of
from bench.measure import timed
from bench.row import Row
from modelcore.data.loader import TrainingBatches, WindowSampler
from modelcore.data.shards import ShardFile, SplitMeta, TokenSplit
from modelcore.gptx import pad_vocabulary
from modelcore.training import train
from modelcore.training.loop import Batches

SHARDS, SHARD_TOKENS = 4, 1 << 26
TURNS = 3
STEPS = 10  # a turn


class InTurn:
    """Batches from one source for some steps, then from the other, and so on.

    Args:
        sources: The two.
        steps: Steps a turn.
    """

    def __init__(self, sources: tuple[Batches, Batches], steps: int) -> None:
        self._sources, self._steps = sources, steps

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, ...]:
        """The batch that the source whose turn it is gives for the step."""
        return self._sources[step // self._steps % 2].batch(step, rank, world_size)


def rows(options: Options) -> Iterator[Row]:
    """Tokens a second with each source, and the time that a batch takes to be read."""
    work, device = GPT2.at(options), device_of(options)
    turns, steps = (1, 2) if options.small else (TURNS, STEPS)
    # Memory has one turn more: the first, in which kernels are compiled.
    asked = our_settings(work, options, steps=(1 + 2 * turns) * steps, log_every=steps)
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        split = _write(Path(scratch), work, 1 << 12 if options.small else SHARD_TOKENS)
        disk = TrainingBatches(split, WindowSampler(split.n_tokens, work.sequence_length, 0), work.batch_size)
        train(
            pad_vocabulary(build(work.config, device), asked.pad_vocab_to_multiple),
            InTurn((RandomTokens(work), disk), steps),
            asked,
            bytes_per_token=1.0,
            report=lambda step, metrics: rates.append(metrics["tokens_per_second"]),
        )
        from_disk, in_memory = (statistics.median(rates[first::2]) for first in (1, 2))
        name = "training_from_disk GPT-2 124M, B=32, T=1024"
        yield Row(name, "training with tokens from disk", from_disk, "tok/s", "tokens in memory", in_memory)
        unread = iter(range(asked.steps, asked.steps + turns * steps))
        read = timed(lambda: disk.batch(next(unread)))
        yield Row(name, "reading a batch", 1e3 * statistics.median(read() for _ in range(turns * steps)), "ms")


def _write(folder: Path, work: Work, shard_tokens: int) -> TokenSplit:
    """Random tokens in files that are on the disk and not in memory."""
    generator = np.random.default_rng(0)
    shards = []
    for number in range(SHARDS):
        name = f"{number:05d}.bin"
        tokens = generator.integers(work.config.vocab_size, size=shard_tokens, dtype=np.uint16)
        with open(folder / name, "wb") as file:
            file.write(tokens.tobytes())
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        shards.append(ShardFile(name, tokens.nbytes, ""))
    count = SHARDS * shard_tokens
    meta = SplitMeta(1, count, count, shards, ShardFile("", 0, ""))
    return TokenSplit(folder, "train", meta, "<u2", work.config.vocab_size, "")


if __name__ == "__main__":
    main(rows)
