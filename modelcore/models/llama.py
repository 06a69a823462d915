"""Llama (Touvron et al. 2023): its named configurations, and its map to Hugging Face's LlamaForCausalLM."""

from __future__ import annotations

from typing import Any

from modelcore.errors import InputError
from modelcore.gptx import GPTConfig
from modelcore.models import rope
from modelcore.models.layout import Projection, TensorMap, flag, require, whole_number

PRESETS = {
    # 1,100,048,384 parameters: TinyLlama (Zhang et al. 2024).
    "tinyllama-1.1b": GPTConfig(
        vocab_size=32000,
        context_length=2048,
        n_layers=22,
        d_model=2048,
        n_heads=32,
        n_kv_heads=4,
        d_ff=5632,
    ),
    # A good million parameters, for a minute on a small CPU; the shape was found by trial. The vocabulary is the
    # tokenizer's.
    "llama-nano": GPTConfig(
        vocab_size=2048,
        context_length=128,
        n_layers=4,
        d_model=128,
        n_heads=4,
        n_kv_heads=2,
        d_ff=352,
    ),
}

# What Llama always has, and a configuration must have to be written as one.
_FIXED = {
    "positions": "rope",
    "norm": "rmsnorm",
    "feedforward": "swiglu",
    "sliding_window": None,
    "embedding_norm": False,
}

# The prefix of every name but the head's.
PREFIX = "model."

# Where the blocks are.
LAYERS = "model.layers"

# Buffers that old files carry beside the weights: RoPE's wavelengths.
IGNORED: tuple[str, ...] = (".rotary_emb.inv_freq",)

# The linear layers of a block in PEFT's usual names.
LORA_TARGETS: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def matches(config: GPTConfig) -> bool:
    """Whether ``config`` is a Llama: RoPE, scaled or not, RMSNorm and SwiGLU, sight of all that came before."""
    return all(getattr(config, name) == value for name, value in _FIXED.items())


def to_huggingface(config: GPTConfig) -> dict[str, Any]:
    """The fields of Hugging Face's ``config.json`` that describe a Llama ``config``.

    The base of RoPE and its scaling are written twice: ``rope_parameters`` is what transformers 5 reads, ``rope_theta``
    and ``rope_scaling`` what its predecessors and most other programs do.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": rope.written_context(config),
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        **rope.to_huggingface(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feedforward_bias,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_huggingface(fields: dict[str, Any]) -> GPTConfig:
    """The configuration that a ``config.json`` of model type ``llama`` describes.

    Raises:
        InputError: If the file describes a variant that GPTConfig has no field for, such as heads that do not
            fill the width.
    """
    require(fields, "hidden_act", "silu")
    theta, scaling, context_length = rope.from_huggingface(fields)
    d_model = whole_number(fields, "hidden_size", 4096)
    n_heads = whole_number(fields, "num_attention_heads", 32)
    head_dim = whole_number(fields, "head_dim", d_model // n_heads)
    if head_dim * n_heads != d_model:
        raise InputError(
            f"head_dim {head_dim} times num_attention_heads {n_heads} is not hidden_size {d_model}; "
            "heads that do not fill the width are not supported"
        )
    return GPTConfig(
        vocab_size=whole_number(fields, "vocab_size", 32000),
        context_length=context_length,
        n_layers=whole_number(fields, "num_hidden_layers", 32),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=whole_number(fields, "num_key_value_heads", n_heads),
        d_ff=whole_number(fields, "intermediate_size", 11008),
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        attention_bias=flag(fields, "attention_bias", False),
        feedforward_bias=flag(fields, "mlp_bias", False),
        tie_embeddings=flag(fields, "tie_word_embeddings", False),
        rope_theta=theta,
        dropout=fields.get("attention_dropout", 0.0),
        rope_scaling=scaling,
    )


def projections(config: GPTConfig) -> list[Projection]:
    """The linear layers of a block.

    Our fused projections are theirs one above the other: query, key, value; gate, up. RoPE pairs channels in the
    same half-split layout, so no row moves within a part.
    """
    d, ff = config.d_model, config.d_ff
    attention_bias, mlp_bias = config.attention_bias, config.feedforward_bias
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return [
        Projection("attention.qkv", qkv, config.qkv_sizes, bias=attention_bias),
        Projection("attention.out", ("self_attn.o_proj",), (d,), bias=attention_bias),
        Projection("feedforward.up", ("mlp.gate_proj", "mlp.up_proj"), (ff, ff), bias=mlp_bias),
        Projection("feedforward.down", ("mlp.down_proj",), (d,), bias=mlp_bias),
    ]


def tensor_maps(config: GPTConfig) -> list[TensorMap]:
    """Each of our tensors and where it lies in a LlamaForCausalLM; a tied head is left out."""
    maps = [TensorMap("embedding.weight", ("model.embed_tokens.weight",))]
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"{LAYERS}.{i}"
        maps.append(TensorMap(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",)))
        maps.append(TensorMap(f"{ours}.feedforward_norm.weight", (f"{theirs}.post_attention_layernorm.weight",)))
        for projection in projections(config):
            maps += projection.tensor_maps(ours, theirs)
    maps.append(TensorMap("norm.weight", ("model.norm.weight",)))
    if not config.tie_embeddings:
        maps.append(TensorMap("head.weight", ("lm_head.weight",)))
    return maps
