"""Normalization layers: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from modelcore.gptx.config import GPTConfig


def build_norm(config: GPTConfig) -> nn.Module:
    """The normalization that ``config`` names, over the last dimension, of size ``d_model``."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)
    return RMSNorm(config.d_model, eps=config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """Root mean square normalization in the dtype of its weight: under autocast in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, d_model) to the same shape, in the weight's dtype."""
        x = x.to(self.weight.dtype)
        eager = x.device.type == "cpu" and not torch.compiler.is_compiling()  # a compiler makes few passes by itself
        if eager and x.dtype == torch.float32 and torch.is_grad_enabled():
            return cast(Tensor, _RMSNormOnCPU.apply(x, self.weight, self.eps))  # type: ignore[no-untyped-call]
        return super().forward(x)


class _RMSNormOnCPU(torch.autograd.Function):
    """The same with its gradient in few passes: torch has no kernel for it on a CPU and records six operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (…, 1)
        scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        normed, weight, scale = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            grad_x = grad * weight
            along = torch.linalg.vecdot(grad_x, normed)[..., None].div_(-normed.shape[-1])  # (…, 1)
            grad_x.addcmul_(normed, along).mul_(scale)
        return grad_x, grad_weight, None
