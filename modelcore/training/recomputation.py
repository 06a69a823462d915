"""What compiled blocks keep for the backward pass, and what they rather compute again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def cheap_recomputation() -> Iterator[None]:
    """Blocks that are compiled while this is open keep nothing that one pass over memory makes again.

    By itself ``torch.compile`` keeps every input of a matrix product. Norms, activations and the bf16 copies of the
    weights are then made anew in the backward pass; results of products and of attention are still kept. A block of
    TinyLlama keeps 20,000 numbers a token instead of 30,000, and no copy of its weights. Gradients are the same.
    """
    import torch._functorch.config as partitioner

    with partitioner.patch(ban_recompute_materialized_backward=False):
        yield
