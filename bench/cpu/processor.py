"""What the processor itself can do with all its cores: a product of fp32 matrices, and reading memory.

No datasheet says it of the share of a processor that a virtual machine is. Measured at most a few times and the best
counts: these are roofs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch

from bench.benchmark import Options, main
from bench.measure import timed
from bench.row import Row
from modelcore.training.precision import fast_kernels

CPU = torch.device("cpu")


def rows(options: Options) -> Iterator[Row]:
    """The two roofs."""
    yield Row("processor product of fp32 matrices", "speed", best_product(options.small) / 1e9, "GFLOP/s")
    yield Row("processor reading memory", "speed", bandwidth(options.small) / 1e9, "GB/s")


@cache
def best_product(small: bool = False) -> float:
    """Floating-point operations a second of an fp32 matrix product, with whichever of torch's kernels is faster."""
    size = 64 if small else 1536
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for precision in ("fp32", "auto"):
        with fast_kernels(precision, CPU, 1):
            run = timed(lambda: a @ b)
            seconds += [run() for _ in range(8)]
    return 2 * size**3 / min(seconds)


@cache
def bandwidth(small: bool = False) -> float:
    """Bytes a second that the cores read from memory, by adding up far more than the caches hold."""
    size = 1 << 16 if small else 1 << 30
    values = torch.ones(size // 4)
    run = timed(values.sum)
    return size / min(run() for _ in range(6))


if __name__ == "__main__":
    main(rows)
