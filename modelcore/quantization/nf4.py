"""Four bits a weight: NormalFloat, the data type of QLoRA (Dettmers et al. 2023).

Each block of 64 neighbouring weights is divided by the largest absolute value in it; what is left is replaced by the
nearest of 16 numbers, which are spaced as the quantiles of a normal distribution. Two weights share a byte, the first
in its upper half. The blocks' largest values stay in fp32, which makes 4.5 bits a weight in all. Quantizing them too,
as the paper does, would save another 0.37 bits, 4 MB of the blocks of GPT-2's 124M model, and is left out. Layout and
numbers are those of bitsandbytes 0.50 with a block size of 64, whose CPU code gives the same bytes and the same
weights.

A weight is off by at most 0.152 times the largest of its block: half of the widest gap between two of the numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Weights that share a largest value."""

# Appendix E of the paper. Zero and both ends are exact; there is one more above zero than below.
CODES = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
"""The 16 numbers, ascending, fp32."""

_MIDPOINTS = ((CODES[1:] + CODES[:-1]) / 2).tolist()

# Both numbers that a byte stands for, (256,). Two fp32 are looked up as one element of eight bytes, which is faster.
_PAIRS = torch.stack([CODES.repeat_interleave(16), CODES.repeat(16)], dim=1).view(torch.float64).flatten()


def quantize_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces each weight by the nearest multiple of its block's largest value.

    Args:
        weight: Floating point, finite, of any shape; blocks run through it row by row. The last one is filled up
            with zeros.

    Returns:
        Two weights a byte, (blocks, 32) uint8, and the blocks' largest absolute values, (blocks, 1) fp32.
    """
    flat = weight.float().flatten()
    blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)  # (blocks, 1)
    unit = blocks / largest.clamp_min(torch.finfo(torch.float32).tiny)
    codes = torch.zeros_like(unit, dtype=torch.uint8)
    for midpoint in _MIDPOINTS:
        codes += unit > midpoint
    return codes[:, 0::2] << 4 | codes[:, 1::2], largest


def dequantize_nf4(packed: Tensor, largest: Tensor, shape: torch.Size) -> Tensor:
    """The weight of the given shape that :func:`quantize_nf4` stands for, fp32."""
    pairs = torch.index_select(_PAIRS.to(packed.device), 0, packed.flatten().int())
    weights = pairs.view(torch.float32).view(-1, BLOCK).mul_(largest)  # (blocks, 64)
    return weights.flatten()[: shape.numel()].view(shape)
