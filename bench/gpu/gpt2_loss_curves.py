"""Whether training GPT-2 124M by the fast path learns what plain PyTorch in fp32 learns (:mod:`bench.gpu.curves`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from bench.benchmark import Options, main
from bench.gpu import curves
from bench.gpu.work import GPT2
from bench.row import Row


def rows(options: Options) -> Iterator[Row]:
    """Differences of the loss, in nats a token."""
    work = dataclasses.replace(GPT2, batch_size=8)
    yield from curves.rows("gpt2_loss_curves 124M, B=8, 200 steps", work, 200, 6e-4, options)


if __name__ == "__main__":
    main(rows)
