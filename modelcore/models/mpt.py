"""MPT (MosaicML 2023): its map to Hugging Face's MptForCausalLM."""

from __future__ import annotations

from typing import Any

from modelcore.errors import InputError
from modelcore.gptx import GPTConfig
from modelcore.models.layout import Projection, TensorMap, flag, require, whole_number

# What MPT always has, and a configuration must have to be written as one.
_FIXED = {
    "positions": "alibi",
    "norm": "layernorm",
    "norm_bias": False,
    "feedforward": "gelu",
    "attention_bias": False,
    "feedforward_bias": False,
    "sliding_window": None,
    "embedding_norm": False,
}

# The prefix of every name but the head's.
PREFIX = "transformer."

# Where the blocks are.
LAYERS = "transformer.blocks"

# Old files carry nothing beside the weights.
IGNORED: tuple[str, ...] = ()

# The linear layers of a block in PEFT's usual names.
LORA_TARGETS: tuple[str, ...] = ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj")


def matches(config: GPTConfig) -> bool:
    """Whether ``config`` is an MPT: ALiBi, LayerNorm, exact GELU, no biases, d_ff of 4 d_model."""
    return (
        all(getattr(config, name) == value for name, value in _FIXED.items())
        and config.n_kv_heads == config.n_heads
        and config.d_ff == 4 * config.d_model
    )


def to_huggingface(config: GPTConfig) -> dict[str, Any]:
    """The fields of Hugging Face's ``config.json`` that describe an MPT ``config``.

    The rate of dropout is written where transformers takes a fraction; ``attn_pdrop``, the one it uses, must be whole.
    """
    return {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "vocab_size": config.vocab_size,
        "max_seq_len": config.context_length,
        "d_model": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "expansion_ratio": 4,
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "emb_pdrop": config.dropout,
        "learned_pos_emb": False,
        "no_bias": True,
        "attn_config": {"attn_type": "multihead_attention", "alibi": True, "alibi_bias_max": 8},
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_huggingface(fields: dict[str, Any]) -> GPTConfig:
    """The configuration that a ``config.json`` of model type ``mpt`` describes.

    Raises:
        InputError: If the file describes a variant that GPTConfig has no field for.
    """
    attention = fields.get("attn_config") or {}
    if not isinstance(attention, dict):
        raise InputError(f"attn_config is {attention!r}; an object is needed")
    for name, value in {
        "attn_type": "multihead_attention",
        "alibi": True,
        "alibi_bias_max": 8,
        "clip_qkv": None,
        "softmax_scale": None,
        "prefix_lm": False,
        "qk_ln": False,
    }.items():
        require(attention, name, value)
    require(fields, "expansion_ratio", 4)
    require(fields, "no_bias", True)
    require(fields, "logit_scale", None)
    if "rms" in str(fields.get("norm_type")):
        raise InputError(f"norm_type is {fields['norm_type']!r}; only layernorm is supported")
    d_model = whole_number(fields, "d_model", 2048, "hidden_size")
    n_heads = whole_number(fields, "n_heads", 16, "num_attention_heads")
    return GPTConfig(
        vocab_size=whole_number(fields, "vocab_size", 50368),
        context_length=whole_number(fields, "max_seq_len", 2048),
        n_layers=whole_number(fields, "n_layers", 24, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_ff=4 * d_model,
        positions="alibi",
        norm="layernorm",
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        feedforward="gelu",
        tie_embeddings=flag(fields, "tie_word_embeddings", True),
        dropout=fields.get("resid_pdrop", 0.0),
    )


def projections(config: GPTConfig) -> list[Projection]:
    """The linear layers of a block; the fused one holds query, key and value as ours does."""
    d = config.d_model
    return [
        Projection("attention.qkv", ("attn.Wqkv",), (3 * d,), bias=False),
        Projection("attention.out", ("attn.out_proj",), (d,), bias=False),
        Projection("feedforward.up", ("ffn.up_proj",), (config.d_ff,), bias=False),
        Projection("feedforward.down", ("ffn.down_proj",), (d,), bias=False),
    ]


def tensor_maps(config: GPTConfig) -> list[TensorMap]:
    """Each of our tensors and where it lies in an MptForCausalLM; a tied head is left out."""
    maps = [TensorMap("embedding.weight", ("transformer.wte.weight",))]
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"{LAYERS}.{i}"
        maps.append(TensorMap(f"{ours}.attention_norm.weight", (f"{theirs}.norm_1.weight",)))
        maps.append(TensorMap(f"{ours}.feedforward_norm.weight", (f"{theirs}.norm_2.weight",)))
        for projection in projections(config):
            maps += projection.tensor_maps(ours, theirs)
    maps.append(TensorMap("norm.weight", ("transformer.norm_f.weight",)))
    if not config.tie_embeddings:
        maps.append(TensorMap("head.weight", ("lm_head.weight",)))
    return maps
