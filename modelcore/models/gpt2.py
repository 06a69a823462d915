"""GPT-2 (Radford et al. 2019): its named configurations, and its map to Hugging Face's GPT2LMHeadModel."""

from __future__ import annotations

from typing import Any

from modelcore.errors import InputError
from modelcore.gptx import GPTConfig
from modelcore.gptx.config import FeedForwardKind
from modelcore.models.layout import Projection, TensorMap, flag, require, whole_number


def _gpt2(*, vocab_size: int, context_length: int, n_layers: int, d_model: int, n_heads: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_ff=4 * d_model,
        positions="learned",
        norm="layernorm",
        feedforward="gelu_tanh",
        attention_bias=True,
        feedforward_bias=True,
        norm_bias=True,
        tie_embeddings=True,
    )


PRESETS = {
    # 124,439,808 parameters: the published 124M model.
    "gpt2-small": _gpt2(vocab_size=50257, context_length=1024, n_layers=12, d_model=768, n_heads=12),
    # About two million parameters, for a minute on a small CPU. The vocabulary is the tokenizer's.
    "gpt2-nano": _gpt2(vocab_size=2048, context_length=256, n_layers=4, d_model=192, n_heads=6),
}

# Hugging Face's names of the activations that GPTConfig has.
_ACTIVATIONS: dict[str, FeedForwardKind] = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}

# What GPT-2 always has, and a configuration must have to be written as one.
_FIXED = {
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "attention_bias": True,
    "feedforward_bias": True,
    "sliding_window": None,
    "embedding_norm": False,
}

# The prefix of every name but the head's. Published files, gpt2's own among them, often lack it.
PREFIX = "transformer."

# Where the blocks are.
LAYERS = "transformer.h"

# Buffers that old files carry beside the weights: the causal mask.
IGNORED: tuple[str, ...] = (".attn.bias", ".attn.masked_bias")

# The linear layers of a block in PEFT's usual names.
LORA_TARGETS: tuple[str, ...] = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def matches(config: GPTConfig) -> bool:
    """Whether ``config`` is a GPT-2: learned positions, LayerNorm, GELU, biases, a key head for every query head."""
    return (
        all(getattr(config, name) == value for name, value in _FIXED.items())
        and config.n_kv_heads == config.n_heads
        and config.feedforward in _ACTIVATIONS.values()
    )


def to_huggingface(config: GPTConfig) -> dict[str, Any]:
    """The fields of Hugging Face's ``config.json`` that describe a GPT-2 ``config``."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "activation_function": "gelu_new" if config.feedforward == "gelu_tanh" else "gelu",
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_huggingface(fields: dict[str, Any]) -> GPTConfig:
    """The configuration that a ``config.json`` of model type ``gpt2`` describes.

    Dropout is taken from ``resid_pdrop``: it matters only for further training, and GPTConfig has one rate.

    Raises:
        InputError: If the file describes a variant that GPTConfig has no field for.
    """
    require(fields, "scale_attn_weights", True)
    require(fields, "scale_attn_by_inverse_layer_idx", False)
    require(fields, "add_cross_attention", False)
    activation = fields.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise InputError(f"activation_function is {activation!r}; readable: {', '.join(_ACTIVATIONS)}")
    d_model = whole_number(fields, "n_embd", 768, "hidden_size")
    n_heads = whole_number(fields, "n_head", 12, "num_attention_heads")
    return GPTConfig(
        vocab_size=whole_number(fields, "vocab_size", 50257),
        context_length=whole_number(fields, "n_positions", 1024, "max_position_embeddings"),
        n_layers=whole_number(fields, "n_layer", 12, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_ff=whole_number(fields, "n_inner", 4 * d_model),
        positions="learned",
        norm="layernorm",
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        feedforward=_ACTIVATIONS[activation],
        attention_bias=True,
        feedforward_bias=True,
        norm_bias=True,
        tie_embeddings=flag(fields, "tie_word_embeddings", True),
        dropout=fields.get("resid_pdrop", 0.1),
    )


def projections(config: GPTConfig) -> list[Projection]:
    """The linear layers of a block.

    GPT-2's are ``Conv1D``: weights stored as (inputs, outputs), ours transposed. The fused projection's columns are
    query, key and value in this order, as our rows are.
    """
    d, ff = config.d_model, config.d_ff
    return [
        Projection("attention.qkv", ("attn.c_attn",), (3 * d,), bias=True, transposed=True),
        Projection("attention.out", ("attn.c_proj",), (d,), bias=True, transposed=True),
        Projection("feedforward.up", ("mlp.c_fc",), (ff,), bias=True, transposed=True),
        Projection("feedforward.down", ("mlp.c_proj",), (d,), bias=True, transposed=True),
    ]


def tensor_maps(config: GPTConfig) -> list[TensorMap]:
    """Each of our tensors and where it lies in a GPT2LMHeadModel; a tied head is left out."""
    maps = [
        TensorMap("embedding.weight", ("transformer.wte.weight",)),
        TensorMap("position_embedding.weight", ("transformer.wpe.weight",)),
    ]
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"{LAYERS}.{i}"
        for kind in ("weight", "bias"):
            maps.append(TensorMap(f"{ours}.attention_norm.{kind}", (f"{theirs}.ln_1.{kind}",)))
            maps.append(TensorMap(f"{ours}.feedforward_norm.{kind}", (f"{theirs}.ln_2.{kind}",)))
        for projection in projections(config):
            maps += projection.tensor_maps(ours, theirs)
    maps += [TensorMap(f"norm.{kind}", (f"transformer.ln_f.{kind}",)) for kind in ("weight", "bias")]
    if not config.tie_embeddings:
        maps.append(TensorMap("head.weight", ("lm_head.weight",)))
    return maps
