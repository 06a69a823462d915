"""Cross-entropy and its gradient in one kernel: a row of logits is read once and overwritten by its gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Measured on an H100; about half of the second pass over a row finds it in the L2 cache.
_BLOCK, _WARPS = 4096, 8


def cross_entropy_(logits: Tensor, targets: Tensor, vocab_size: int, ignored: int, with_gradient: bool) -> Tensor:
    """The loss of each row; the logits are overwritten by their gradient.

    Args:
        logits: (n, columns) with rows in one piece, of any floating-point type; computed with in fp32. Afterwards
            softmax(logits) - onehot(target), and zero in rows that are ignored and in columns beyond the vocabulary.
        targets: (n,) int64.
        vocab_size: How many columns count.
        ignored: The target of a row that does not count.
        with_gradient: False leaves the logits as they are.

    Returns:
        (n,) fp32 in nats, 0 for a row that is ignored.
    """
    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    _cross_entropy[(logits.shape[0],)](
        logits,
        targets,
        losses,
        logits.stride(0),
        ignored,
        vocab_size=vocab_size,
        n_columns=logits.shape[1],
        with_gradient=with_gradient,
        block=_BLOCK,
        num_warps=_WARPS,
    )
    return losses


@triton.jit
def _cross_entropy(
    logits,
    targets,
    losses,
    stride,
    ignored,
    vocab_size: tl.constexpr,
    n_columns: tl.constexpr,
    with_gradient: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    counts = target != ignored

    # Largest logit and sum of exponentials so far (Milakov and Gimelshein 2018).
    largest, total = float("-inf"), 0.0
    for start in range(0, vocab_size, block):
        columns = start + tl.arange(0, block)
        x = tl.load(logits + columns, mask=columns < vocab_size, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
        largest = larger

    of_target = tl.load(logits + tl.where(counts, target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(counts, (largest - of_target) + tl.log(total), 0.0))
    if with_gradient:
        for start in range(0, n_columns, block):
            columns = start + tl.arange(0, block)
            x = tl.load(logits + columns, mask=columns < vocab_size, other=float("-inf")).to(tl.float32)
            gradient = tl.exp(x - largest) / total - tl.where(columns == target, 1.0, 0.0)
            gradient = tl.where(counts, gradient, 0.0).to(logits.dtype.element_ty)
            tl.store(logits + columns, gradient, mask=columns < n_columns)
