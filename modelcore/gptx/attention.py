"""Causal self-attention with grouped key heads (Vaswani et al. 2017, Ainslie et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.gptx.config import GPTConfig
from modelcore.gptx.kv_cache import KVCache
from modelcore.gptx.linear import Linear
from modelcore.gptx.positions import apply_rope
from modelcore.gptx.short_attention import SHORT, short_causal_attention


@dataclass(frozen=True)
class AttentionInputs:
    """What every block's attention shares in one forward pass, computed once.

    Attributes:
        cos: RoPE's cosines at the queries' positions, or None without RoPE; ``sin`` likewise.
        mask: What SDPA takes as ``attn_mask``: boolean (True: visible) or a float bias; None where plain
            causal order says it all.
        causal: Whether SDPA's own causal order is wanted.
        positions: (batch, time) positions to write to the cache, or None without one.
    """

    cos: Tensor | None
    sin: Tensor | None
    mask: Tensor | None
    causal: bool
    positions: Tensor | None


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values come from one fused projection."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = [config.n_heads, config.n_kv_heads, config.n_kv_heads]
        self.head_dim = config.head_dim
        self.grouped = config.n_kv_heads != config.n_heads
        self.dropout = config.dropout
        self.qkv = Linear(config.d_model, sum(config.qkv_sizes), bias=config.attention_bias)
        self.out = Linear(config.d_model, config.d_model, bias=config.attention_bias)

    def forward(self, x: Tensor, inputs: AttentionInputs, cache: KVCache | None, layer: int) -> Tensor:
        """Maps (batch, time, d_model) to the same shape, reading and extending ``cache`` if there is one."""
        batch, time, _ = x.shape
        qkv = self.qkv(x)
        dropout = self.dropout if self.training else 0.0
        # SDPA takes scores of narrower numbers in fp32; a compiler makes few passes by itself.
        plain = x.device.type == "cpu" and qkv.dtype == torch.float32 and not torch.compiler.is_compiling()
        if plain and time <= SHORT and inputs.causal and cache is None and not dropout:
            y = short_causal_attention(qkv, self.heads, self.head_dim, inputs.cos, inputs.sin)
            return cast(Tensor, self.out(y))
        qkv = qkv.view(batch, time, -1, self.head_dim)  # (B, T, heads of all three, D)
        q, k, v = (part.transpose(1, 2) for part in qkv.split(self.heads, dim=2))  # (B, heads, T, D)
        if inputs.cos is not None and inputs.sin is not None:
            q = apply_rope(q, inputs.cos, inputs.sin)
            k = apply_rope(k, inputs.cos, inputs.sin)
        if cache is not None and inputs.positions is not None:
            k, v = cache.write(layer, k, v, inputs.positions)  # (B, kv heads, S, D)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=inputs.mask, dropout_p=dropout, is_causal=inputs.causal, enable_gqa=self.grouped
        )  # (B, heads, T, D)
        return cast(Tensor, self.out(y.transpose(1, 2).reshape(batch, time, -1)))
