"""The feed-forward layer: GELU (Hendrycks and Gimpel 2016) or SwiGLU (Shazeer 2020)."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.gptx.config import GPTConfig
from modelcore.gptx.linear import Linear


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between, applied to each position alone.

    With ``swiglu`` the first layer holds gate and up projection one above the other, so that both
    are one matrix product.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.kind = config.feedforward
        width = 2 * config.d_ff if self.kind == "swiglu" else config.d_ff
        self.up = Linear(config.d_model, width, bias=config.feedforward_bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.feedforward_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, d_model) to (…, d_model)."""
        h = self.up(x)  # (…, d_ff), or (…, 2 d_ff) for swiglu
        if self.kind == "swiglu":
            h = _swiglu(h)
        else:
            h = F.gelu(h, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        return cast(Tensor, self.down(h))


def _swiglu(h: Tensor) -> Tensor:
    """``silu(gate) · up`` of gate and up side by side: (…, 2 n) to (…, n)."""
    eager = h.device.type == "cpu" and not torch.compiler.is_compiling()  # a compiler makes few passes by itself
    if eager and torch.is_grad_enabled():
        return cast(Tensor, _SwiGLUOnCPU.apply(h))  # type: ignore[no-untyped-call]
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLUOnCPU(torch.autograd.Function):
    """The same; the gradients of gate and up are made side by side, where torch makes each and then copies both."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        gate, up = h.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(h, activated)
        return activated * up

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        h, activated = ctx.saved_tensors
        grad_h = torch.empty_like(h)
        (gate, up), (to_gate, to_up) = h.chunk(2, dim=-1), grad_h.chunk(2, dim=-1)
        torch.mul(grad, activated, out=to_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
        return grad_h
