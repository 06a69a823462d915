"""Normalization layers: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

from torch import nn

from modelcore.gptx.config import GPTConfig


def build_norm(config: GPTConfig) -> nn.Module:
    """The normalization that ``config`` names, over the last dimension, of size ``d_model``."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)
    return nn.RMSNorm(config.d_model, eps=config.norm_eps)
