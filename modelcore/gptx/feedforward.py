"""The feed-forward layer: GELU (Hendrycks and Gimpel 2016) or SwiGLU (Shazeer 2020)."""

from typing import cast

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
            gate, up = h.chunk(2, dim=-1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(h, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        return cast(Tensor, self.down(h))
