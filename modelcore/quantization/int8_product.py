"""The product with a weight in int8, where no gradient is wanted.

A CPU makes one token as fast as it reads the weights, so bytes should be read as bytes, and not be made floats first.
Its instructions for that multiply integers of eight bits (VNNI). An activation has more; it is therefore written as two
digits to the base 254, two rows of int8, and the products of both are added::

    x ≈ u · (high + low / 254),   u = max|x| / 127 of its row

Every integer sum is exact, so that a row's result does not depend on the rows beside it. An activation is off by at
most max|x| / 64,516 of its row. Of the error that rounding the weight to int8 makes that is 1/260 where activations
are normally distributed, and 1/31 where one of them is hundreds of times as large as the rest (measured).
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from modelcore.gptx.int8 import LEVELS

_BASE = 2 * LEVELS  # the lower digit is at most half of it
_FEWEST_WEIGHTS = 2**18  # below, taking the activations apart takes longer than the product
_WEIGHTS_AT_ONCE = 2**20  # as floats they stay in a core's cache between being made and being read


def int8_linear(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` for the weight that :func:`~modelcore.gptx.int8.quantize_int8` gave.

    Args:
        x: (…, inputs), floating point.
        values: (outputs, inputs) int8.
        scale: (outputs, 1) fp32.
        bias: (outputs,), or None.

    Returns:
        (…, outputs) in the dtype of ``x``.
    """
    if x.device.type != "cpu":
        if x.dtype == torch.float16:  # whose range ends before that of products with whole numbers
            y = F.linear(x, (values * scale).to(x.dtype))
        else:
            y = F.linear(x, values.to(x.dtype)) * scale.flatten().to(x.dtype)
        return y if bias is None else y + bias
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).float()  # (R, inputs)
    # torch 2.13 takes a single column for a row.
    if values.numel() >= _FEWEST_WEIGHTS and values.shape[1] > 1 and len(rows) and multiplies_int8_exactly():
        y = _product_of_digits(rows, values)
    else:
        pieces = torch.split(values, max(1, _WEIGHTS_AT_ONCE // values.shape[1]))
        y = torch.cat([F.linear(rows, piece.float()) for piece in pieces], dim=1)
    y = y.mul_(scale.flatten()) if bias is None else torch.addcmul(bias.float(), y, scale.flatten())
    return y.view(*x.shape[:-1], len(values)).to(x.dtype)


@functools.cache
def multiplies_int8_exactly() -> bool:
    """Whether this CPU adds products of int8 in 32 bits, and torch makes use of it.

    Without VNNI oneDNN adds pairs of them in 16 bits, which overflow. Elsewhere torch has no fast product of this kind.
    """
    if not (torch.cpu.get_capabilities().get("avx512_vnni") and hasattr(torch, "_int_mm")):
        return False
    most = torch.full((2, 64), LEVELS, dtype=torch.int8)
    signs = torch.tensor([1, -1], dtype=torch.int8)[:, None]
    expected = 64 * LEVELS**2 * torch.tensor([[1, -1], [1, -1]], dtype=torch.int32)
    return torch.equal(torch._int_mm(most, (most * signs).t()), expected)


def _product_of_digits(x: Tensor, values: Tensor) -> Tensor:
    """(R, inputs) fp32 by (outputs, inputs) int8: (R, outputs) fp32."""
    n, unit = len(x), x.abs().amax(dim=1, keepdim=True) / LEVELS  # (R, 1)
    units = x / unit  # of a row of zeros no numbers; whatever digits they give, it stays zeros
    high = units.round()
    low = units.sub_(high).mul_(_BASE).round_()
    digits = torch.cat((high, low)).to(torch.int8)  # (2 R, inputs)
    y = torch._int_mm(digits, values.t()).float()  # (2 R, outputs)
    return y[:n].add_(y[n:], alpha=1 / _BASE).mul_(unit)
