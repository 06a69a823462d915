"""A model's tensors as the kernels read them, for the models that they know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from modelcore.gptx import GPT, GPTConfig
from modelcore.gptx.attention import Attention
from modelcore.gptx.feedforward import FeedForward
from modelcore.gptx.norms import RMSNorm
from modelcore.gptx.transformer import Block
from modelcore.gptx.vocab_padding import PaddedEmbedding
from modelcore.quantization import Int8Linear

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MOST_VOCAB = 2**17  # a row of logits is read by one program


@dataclass(frozen=True)
class LinearWeights:
    """A linear layer: weight (outputs, inputs), in int8 with a scale for each output; bias (outputs,)."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class NormWeights:
    """A norm: weight and bias, (d_model,)."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class BlockWeights:
    """One block."""

    attention_norm: NormWeights
    qkv: LinearWeights
    out: LinearWeights
    feedforward_norm: NormWeights
    up: LinearWeights
    down: LinearWeights


@dataclass(frozen=True)
class DecodeWeights:
    """All that one token's way through the model reads. The tensors are the model's own, not copies.

    Attributes:
        embedding: (vocab_size or more, d_model); positions (context_length, d_model), or None.
        cos: RoPE's tables (context_length, head_dim / 2), or None; ``sin`` likewise.
        blocks: By layer.
        norm: Before the head.
        head: Of ``vocab_size`` outputs.
    """

    embedding: Tensor
    positions: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    blocks: tuple[BlockWeights, ...]
    norm: NormWeights
    head: LinearWeights

    def tensors(self) -> Iterator[Tensor | None]:
        """Every tensor, in a fixed order."""
        yield from (self.embedding, self.positions, self.cos, self.sin)
        parts = [getattr(block, field.name) for block in self.blocks for field in fields(block)]
        for part in (*parts, self.norm, self.head):
            yield from (getattr(part, field.name) for field in fields(part))

    def places(self) -> tuple[int, ...]:
        """Where the tensors lie; while it stays the same, what was captured reads them still."""
        return tuple(0 if tensor is None else tensor.data_ptr() for tensor in self.tensors())


def read_weights(model: GPT, length: int) -> DecodeWeights | None:
    """The weights of a model that the kernels know, or None.

    They know Llama, Mistral without its window, and GPT-2: plain blocks whose linear layers are plain or in int8, all
    in one floating-point type; no ALiBi, no window, no norm after the embedding, no adapters and no hooks.

    Args:
        model: The model.
        length: Longest text, in tokens; with it, RoPE may change its angles.
    """
    config = model.config
    if not _is_known(config, length) or any(_has_hooks(module) for module in model.modules()):
        return None
    if type(model.embedding) not in (nn.Embedding, PaddedEmbedding):
        return None
    blocks = [_block(block) for block in model.blocks]
    norm, head = _norm(model.norm), _linear(model.head)
    known = tuple(block for block in blocks if block is not None)
    if norm is None or head is None or len(known) < len(blocks):
        return None
    positions = None if model.position_embedding is None else model.position_embedding.weight
    weights = DecodeWeights(model.embedding.weight, positions, model.cos, model.sin, known, norm, head)
    return weights if _fit(weights) else None


def _is_known(config: GPTConfig, length: int) -> bool:
    scaling = config.rope_scaling
    return (
        config.positions != "alibi"
        and config.sliding_window is None
        and not config.embedding_norm
        and (scaling is None or not scaling.depends_on(length))
        and config.head_dim % 2 == 0
        and 16 <= config.head_dim <= 256
        and config.d_model % 16 == 0
        and config.d_ff % 16 == 0
        and config.vocab_size <= _MOST_VOCAB
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fit(weights: DecodeWeights) -> bool:
    """Whether all tensors are where and what the kernels take them for."""
    dtype, device = weights.embedding.dtype, weights.embedding.device
    small = {id(weights.cos), id(weights.sin)}
    for tensor in weights.tensors():
        if tensor is None:
            continue
        known = tensor.dtype in (dtype, torch.int8, torch.float32) or id(tensor) in small
        if not known or tensor.device != device or not tensor.is_contiguous():
            return False
    return dtype in _DTYPES


def _block(block: nn.Module) -> BlockWeights | None:
    if type(block) is not Block or type(block.attention) is not Attention or type(block.feedforward) is not FeedForward:
        return None
    attention_norm, feedforward_norm = _norm(block.attention_norm), _norm(block.feedforward_norm)
    qkv, out = _linear(block.attention.qkv), _linear(block.attention.out)
    up, down = _linear(block.feedforward.up), _linear(block.feedforward.down)
    if not (attention_norm and feedforward_norm and qkv and out and up and down):
        return None
    return BlockWeights(attention_norm, qkv, out, feedforward_norm, up, down)


def _norm(norm: nn.Module) -> NormWeights | None:
    if type(norm) is nn.LayerNorm:
        return NormWeights(norm.weight, norm.bias)
    return NormWeights(norm.weight, None) if type(norm) is RMSNorm else None


def _linear(linear: nn.Module) -> LinearWeights | None:
    # Plain, or the model's own kinds of it, which compute the same.
    if isinstance(linear, nn.Linear) and type(linear).__module__.startswith(("torch.nn.modules.", "modelcore.gptx.")):
        return LinearWeights(linear.weight, None, linear.bias)
    return LinearWeights(linear.values, linear.scale, linear.bias) if type(linear) is Int8Linear else None
