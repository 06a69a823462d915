"""Whether training TinyLlama 1.1B by the fast path learns what plain PyTorch in fp32 learns (:mod:`bench.gpu.curves`).

The reference in fp32 takes minutes, so this is not among the benchmarks that run by default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from bench.benchmark import Options, main
from bench.gpu import curves
from bench.gpu.work import TINYLLAMA
from bench.row import Row


def rows(options: Options) -> Iterator[Row]:
    """Differences of the loss, in nats a token."""
    work = dataclasses.replace(TINYLLAMA, batch_size=2)
    yield from curves.rows("tinyllama_loss_curves 1.1B, B=2, 200 steps", work, 200, 4e-4, options)


if __name__ == "__main__":
    main(rows)
