"""Causal attention of short texts on a CPU, by plain matrix products."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modelcore.gptx.positions import rotate

SHORT = 256
"""Tokens up to which plain matrix products are faster on a CPU than a fused kernel."""


def short_causal_attention(
    qkv: Tensor, heads: Sequence[int], head_dim: int, cos: Tensor | None, sin: Tensor | None
) -> Tensor:
    """What RoPE and SDPA with ``is_causal`` give, by two products for each key head, its queries' heads stacked.

    SDPA's own plain products copy keys and values for every query head, and look for rows without a visible key. Here
    nothing is copied but to be turned, and the gradients of queries, keys and values are made where they belong, in
    the gradient of ``qkv``.

    Args:
        qkv: (batch, time, the sum of ``heads`` times head_dim).
        heads: Heads of the queries, of the keys and of the values.
        head_dim: Columns of one head.
        cos: (time, head_dim / 2), or (batch, 1, time, head_dim / 2) where rows differ in position; None without RoPE.
        sin: Like ``cos``.

    Returns:
        (batch, time, the first of ``heads`` times head_dim).
    """
    return cast(Tensor, _ShortCausalAttention.apply(qkv, list(heads), head_dim, cos, sin))  # type: ignore[no-untyped-call]


class _ShortCausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: list[int], head_dim: int, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        batch, time, _ = qkv.shape
        parts = _heads(qkv, heads, head_dim)  # views, (B, heads, T, D)
        q, k, v = (part.new_empty(part.shape) for part in parts)
        scale = 1 / math.sqrt(head_dim)
        if cos is None or sin is None:
            torch.mul(parts[0], scale, out=q)
            k.copy_(parts[1])
        else:
            rotate(parts[0], cos * scale, sin * scale, out=q)
            rotate(parts[1], cos, sin, out=k)
        v.copy_(parts[2])
        n, rows = batch * k.shape[1], q.shape[1] // k.shape[1] * time
        q, k, v = q.view(n, rows, head_dim), k.view(n, time, head_dim), v.view(n, time, head_dim)
        p = torch.baddbmm(_what_is_hidden(time, rows // time, q.dtype), q, k.mT)  # (n, group T, T)
        torch._softmax(p, -1, False, out=p)
        ctx.save_for_backward(q, k, v, p, cos, sin)
        ctx.heads, ctx.scale = heads, scale
        y = torch.bmm(p, v).view(batch, -1, time, head_dim)  # (B, heads, T, D)
        return y.transpose(1, 2).reshape(batch, time, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        q, k, v, p, cos, sin = ctx.saved_tensors
        (n, time, head_dim), batch = k.shape, grad.shape[0]
        grad_qkv = grad.new_empty(batch, time, sum(ctx.heads) * head_dim)
        to_q, to_k, to_v = _heads(grad_qkv, ctx.heads, head_dim)
        grad = grad.reshape(batch, time, -1, head_dim).transpose(1, 2).reshape(n, -1, head_dim)  # (n, group T, D)
        to_v.copy_(torch.bmm(p.mT, grad).view(to_v.shape))
        grad_s = torch.bmm(grad, v.mT)  # (n, group T, T)
        torch._softmax_backward_data(grad_s, p, -1, p.dtype, grad_input=grad_s)
        grad_q, grad_k = torch.bmm(grad_s, k).view(to_q.shape), torch.bmm(grad_s.mT, q).view(to_k.shape)
        if cos is None:
            torch.mul(grad_q, ctx.scale, out=to_q)
            to_k.copy_(grad_k)
        else:
            rotate(grad_q, cos * ctx.scale, -sin * ctx.scale, out=to_q)
            rotate(grad_k, cos, -sin, out=to_k)
        return grad_qkv, None, None, None, None


def _heads(qkv: Tensor, heads: list[int], head_dim: int) -> list[Tensor]:
    """Queries, keys and values as views, (batch, heads, time, head_dim) each."""
    batch, time, _ = qkv.shape
    parts = torch.split(qkv.view(batch, time, -1, head_dim), heads, dim=2)
    return [part.transpose(1, 2) for part in parts]


@functools.lru_cache(maxsize=8)
def _what_is_hidden(time: int, group: int, dtype: torch.dtype) -> Tensor:
    """(group · time, time): -inf where the key comes after the query, 0 elsewhere."""
    with torch.inference_mode(False):  # it serves training too, whoever asks first
        return torch.full((time, time), float("-inf"), dtype=dtype).triu_(1).repeat(group, 1)
