"""Eight bits a weight: each row is a scale times whole numbers from -127 to 127 (symmetric, an output channel a scale).

A weight is off by at most half of its row's scale, that is by 1/254 of the row's largest weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127
"""Largest whole number; -128 is not used, so that a row and its negative are alike."""


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a weight to whole multiples of its rows' scales.

    Args:
        weight: (outputs, inputs), floating point, finite.

    Returns:
        The whole numbers, (outputs, inputs) int8, and the scales, (outputs, 1) fp32.
    """
    weight = weight.float()
    scale = weight.abs().amax(dim=1, keepdim=True) / LEVELS  # (outputs, 1)
    # A row of zeros has the scale 0; whatever it is divided by, it stays zeros.
    values = torch.round(weight / scale.clamp_min(torch.finfo(torch.float32).tiny))
    return values.clamp_(-LEVELS, LEVELS).to(torch.int8), scale


def dequantize_int8(values: Tensor, scale: Tensor) -> Tensor:
    """The weight that :func:`quantize_int8` stands for, (outputs, inputs) fp32."""
    return values.float().mul_(scale)
