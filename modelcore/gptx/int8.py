"""Eight bits a number: each vector is a scale times whole numbers from -127 to 127.

A number is off by at most half of its vector's scale, that is by 1/254 of the vector's largest number. A vector is a
row of a weight, or what the cache keeps of one token and head.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127
"""Largest whole number; -128 is not used, so that a vector and its negative are alike."""


def quantize_int8(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds vectors to whole multiples of their scales.

    Args:
        vectors: (…, n), floating point, finite.

    Returns:
        The whole numbers, (…, n) int8, and the scales, (…, 1) fp32.
    """
    vectors = vectors.float()
    scale = vectors.abs().amax(dim=-1, keepdim=True) / LEVELS  # (…, 1)
    # A vector of zeros has the scale 0; whatever it is divided by, it stays zeros.
    values = torch.round(vectors / scale.clamp_min(torch.finfo(torch.float32).tiny))
    return values.clamp_(-LEVELS, LEVELS).to(torch.int8), scale


def dequantize_int8(values: Tensor, scale: Tensor) -> Tensor:
    """The vectors that :func:`quantize_int8` stands for, (…, n) fp32."""
    return values.float().mul_(scale)
