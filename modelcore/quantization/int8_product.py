"""The product with a weight in int8, where no gradient is wanted.

A CPU makes one token as fast as it reads the weights, so bytes should be read as bytes, and not be made floats first.
Its instructions for that multiply integers of eight bits (VNNI). An activation has more; it is therefore written as two
digits to the base 254, two rows of eight bits, and the products of both are added::

    x ≈ u · (high + low / 254),   u = max|x| / 127 of its row

Every integer sum is exact, so that a row's result does not depend on the rows beside it. An activation is off by at
most max|x| / 64,516 of its row. Of the error that rounding the weight to int8 makes that is 1/260 where activations
are normally distributed, and 1/31 where one of them is hundreds of times as large as the rest (measured).

The integers are multiplied by FBGEMM (Khudia et al. 2021), which torch carries. It wants the weight in an order of its
own, :func:`pack`, and then reads it half again to twice as fast as oneDNN does (docs/performance.md).
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from modelcore.gptx.int8 import LEVELS

Packed: TypeAlias = Any
"""A weight and its scales in FBGEMM's order: an object of torch's own that has no type in Python."""

_BASE = 2 * LEVELS  # the lower digit is at most half of it
_FEWEST_WEIGHTS = 2**18  # below, taking the activations apart takes longer than the product
_MOST_INPUTS = 2**16  # of more, sums of products of eight bits may not fit 32
_WEIGHTS_AT_ONCE = 2**20  # as floats they stay in a core's cache between being made and being read


def int8_linear(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` for the weight that :func:`~modelcore.gptx.int8.quantize_int8` gave, which is made floats.

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
    pieces = torch.split(values, max(1, _WEIGHTS_AT_ONCE // values.shape[1]))
    y = torch.cat([F.linear(rows, piece.float()) for piece in pieces], dim=1)
    y = y.mul_(scale.flatten()) if bias is None else torch.addcmul(bias.float(), y, scale.flatten())
    return y.view(*x.shape[:-1], len(values)).to(x.dtype)


def packs(values: Tensor) -> bool:
    """Whether :func:`packed_linear` can multiply by these whole numbers, (outputs, inputs) int8, and is faster."""
    return (
        values.device.type == "cpu"
        and values.numel() >= _FEWEST_WEIGHTS
        and values.shape[1] <= _MOST_INPUTS
        and multiplies_int8_exactly()
    )


def pack(values: Tensor, scale: Tensor) -> Packed:
    """The weight in the order in which :func:`packed_linear` reads it, in as many bytes.

    Args:
        values: (outputs, inputs) int8.
        scale: (outputs, 1) fp32.
    """
    with warnings.catch_warnings():  # torch is to drop its quantized tensors; without them nothing is packed
        warnings.filterwarnings("ignore", ".*quantized tensor.*deprecated", UserWarning)
        zeros = torch.zeros(len(values), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(values, scale.flatten().double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None)


def unpack(packed: Packed) -> Tensor:
    """The whole numbers that :func:`pack` was given, (outputs, inputs) int8, made anew."""
    weight: Tensor = torch.ops.quantized.linear_unpack(packed)[0]
    return weight.int_repr()


def packed_linear(x: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` on a CPU for a packed weight; arguments and result otherwise as of :func:`int8_linear`.

    For one row of a small model each operation costs as much as its numbers, so there are as few as possible.
    """
    if x.dim() < 2:
        return packed_linear(x[None], packed, bias)[0]
    if x.dtype != torch.float32:
        return packed_linear(x.float(), packed, None if bias is None else bias.float()).to(x.dtype)
    unit = x.abs().amax(dim=-1, keepdim=True).div_(LEVELS)  # (…, 1)
    low = x / unit  # of a row of zeros no numbers; whatever digits they give, it stays zeros
    high = low.round()
    low.sub_(high).mul_(_BASE)  # the product rounds it, as it makes bytes of both
    high, low = _multiply(torch.cat((high, low)), packed).chunk(2)  # each (…, outputs)
    y = high.add_(low, alpha=1 / _BASE)
    return y.mul_(unit) if bias is None else torch.addcmul(bias, y, unit)


@functools.cache
def multiplies_int8_exactly() -> bool:
    """Whether this CPU adds products of int8 in 32 bits, and torch makes use of it.

    Without VNNI FBGEMM adds pairs of them in 16 bits, which overflow. Elsewhere torch has no fast product of this kind.
    """
    if not torch.cpu.get_capabilities().get("avx512_vnni"):
        return False
    most = torch.full((2, 64), LEVELS, dtype=torch.int8)
    signs = torch.tensor([1, -1], dtype=torch.int8)[:, None]
    expected = 64.0 * LEVELS**2 * torch.tensor([[1, -1], [1, -1]])
    try:
        return torch.equal(_multiply(most.float(), pack(most * signs, torch.ones(2, 1))), expected)
    except (AttributeError, RuntimeError):  # a torch without FBGEMM, or without this product
        return False


def _multiply(whole: Tensor, packed: Packed) -> Tensor:
    """Numbers from -127 to 127, (…, inputs) fp32, rounded to whole ones, by a packed weight: (…, outputs) fp32."""
    product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(whole, 1.0, LEVELS, packed)
    return product
