"""Normalization layers: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

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
        return super().forward(x.to(self.weight.dtype))
