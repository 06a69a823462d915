"""Position schemes: rotary embedding and attention with linear biases.

RoPE follows Su et al. 2021 (RoFormer) in the half-split layout that Llama checkpoints use: channel i is
paired with channel i + D/2. ALiBi follows Press et al. 2022. Learned positions are a plain
embedding table and live in the transformer itself.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from modelcore.gptx.rope_scaling import RopeScaling, rope_frequencies


def rope_tables(head_dim: int, length: int, theta: float, scaling: RopeScaling | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE's angles at the first ``length`` positions, each (length, head_dim / 2) in fp32.

    Pair i at position p turns by p · theta^(-2i / head_dim) radians, or as ``scaling`` says. Scaling that depends on
    the text's length is left out: these are the tables of texts that are short enough.
    """
    return rope_at(torch.arange(length), 0, head_dim, theta, scaling)


def rope_at(
    positions: Tensor, length: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Like :func:`rope_tables`, at ``positions`` (…,) in a text of ``length`` tokens: each (…, head_dim / 2)."""
    if scaling is None:
        frequencies, magnitude = rope_frequencies(head_dim, theta, positions.device), 1.0
    else:
        frequencies, magnitude = scaling.frequencies(head_dim, theta, length, positions.device), scaling.magnitude
    angles = positions[..., None].float() * frequencies  # (…, D/2)
    return angles.cos() * magnitude, angles.sin() * magnitude


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair of channels of ``x`` by its position's angle.

    Args:
        x: (batch, heads, time, head_dim).
        cos: (time, head_dim / 2), or (batch, 1, time, head_dim / 2) where rows differ in position.
        sin: Like ``cos``.

    Returns:
        The rotated tensor, in ``x``'s shape and dtype; the rotation itself is done in the tables' dtype.
    """
    eager = x.device.type == "cpu" and not torch.compiler.is_compiling()  # a compiler makes few passes by itself
    if eager and x.dtype == cos.dtype:
        return cast(Tensor, _RotationOnCPU.apply(x, cos, sin))  # type: ignore[no-untyped-call]
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)


class _RotationOnCPU(torch.autograd.Function):
    """The rotation in four passes over half of the channels each; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin, out=x.new_empty(x.shape))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grad, cos, -sin, out=grad.new_empty(grad.shape)), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor) -> Tensor:
    """Writes the rotation of ``x`` by cosines and sines of its dtype to ``out``, without a gradient; gives ``out``."""
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return out


def positions_in_documents(documents: Tensor) -> Tensor:
    """How far each token is from the start of its document.

    Args:
        documents: (batch, time), the number of each token's document; equal neighbors are of one document.

    Returns:
        (batch, time) int64, 0 at every document's first token.
    """
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - index.where(begins, 0).cummax(dim=1).values


def alibi_slopes(n_heads: int) -> Tensor:
    """The slope of each head, (n_heads,) in fp32: a geometric sequence from 2^(-8/n) down to 2^-8.

    For a number of heads that is no power of two, the slopes of the next lower power come first, then
    every second slope of the next higher one, as in the paper's own code.
    """

    def power_of_two(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    lower = 2 ** math.floor(math.log2(n_heads))
    slopes = power_of_two(lower) + power_of_two(2 * lower)[0::2][: n_heads - lower]
    return torch.tensor(slopes, dtype=torch.float32)


def alibi_bias(slopes: Tensor, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """The bias -slope · (query position - key position), to be added to the scores.

    Args:
        slopes: (heads,).
        query_positions: (batch, queries) or (1, queries), in tokens.
        key_positions: (batch, keys) or (1, keys), in tokens.

    Returns:
        (batch, heads, queries, keys); 0 where the key stands at the query's own position. Keys after the query
        get a positive value and must be masked by the caller.
    """
    distance = query_positions[:, :, None] - key_positions[:, None]  # (B, T, S)
    return -slopes[None, :, None, None] * distance[:, None].to(slopes.dtype)
