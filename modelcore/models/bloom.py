"""BLOOM (Le Scao et al. 2022): its map to Hugging Face's BloomForCausalLM."""

from __future__ import annotations

from typing import Any

from modelcore.gptx import GPTConfig
from modelcore.models.layout import Projection, TensorMap, flag, require, whole_number

# What BLOOM always has, and a configuration must have to be written as one.
_FIXED = {
    "positions": "alibi",
    "norm": "layernorm",
    "norm_bias": True,
    "feedforward": "gelu_tanh",
    "attention_bias": True,
    "feedforward_bias": True,
    "sliding_window": None,
    "embedding_norm": True,
}

# The prefix of every name but the head's.
PREFIX = "transformer."

# Where the blocks are.
LAYERS = "transformer.h"

# Old files carry nothing beside the weights.
IGNORED: tuple[str, ...] = ()

# The linear layers of a block in PEFT's usual names.
LORA_TARGETS: tuple[str, ...] = (
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)


def matches(config: GPTConfig) -> bool:
    """Whether ``config`` is a BLOOM: ALiBi, LayerNorm, also of the embedding, GELU, biases, d_ff of 4 d_model."""
    return (
        all(getattr(config, name) == value for name, value in _FIXED.items())
        and config.n_kv_heads == config.n_heads
        and config.d_ff == 4 * config.d_model
    )


def to_huggingface(config: GPTConfig) -> dict[str, Any]:
    """The fields of Hugging Face's ``config.json`` that describe a BLOOM ``config``.

    BLOOM has no limit to its context; ``seq_length``, the length it is trained for, is a field of the published files
    that transformers keeps and does not use.
    """
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": config.vocab_size,
        "seq_length": config.context_length,
        "hidden_size": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "layer_norm_epsilon": config.norm_eps,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_huggingface(fields: dict[str, Any]) -> GPTConfig:
    """The configuration that a ``config.json`` of model type ``bloom`` describes, in its older names too.

    Raises:
        InputError: If the file describes a variant that GPTConfig has no field for.
    """
    require(fields, "apply_residual_connection_post_layernorm", False)
    d_model = whole_number(fields, "n_embed", whole_number(fields, "hidden_size", 64))
    n_heads = whole_number(fields, "n_head", 8, "num_attention_heads")
    return GPTConfig(
        vocab_size=whole_number(fields, "vocab_size", 250880),
        context_length=whole_number(fields, "seq_length", 2048),
        n_layers=whole_number(fields, "n_layer", 2, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_ff=4 * d_model,
        positions="alibi",
        norm="layernorm",
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        feedforward="gelu_tanh",
        attention_bias=True,
        feedforward_bias=True,
        norm_bias=True,
        tie_embeddings=flag(fields, "tie_word_embeddings", True),
        dropout=fields.get("hidden_dropout", 0.0),
        embedding_norm=True,
    )


def projections(config: GPTConfig) -> list[Projection]:
    """The linear layers of a block; query, key and value of one head follow each other in the fused one."""
    d, heads = config.d_model, config.n_heads
    return [
        Projection("attention.qkv", ("self_attention.query_key_value",), (3 * d,), bias=True, qkv_by_head=heads),
        Projection("attention.out", ("self_attention.dense",), (d,), bias=True),
        Projection("feedforward.up", ("mlp.dense_h_to_4h",), (config.d_ff,), bias=True),
        Projection("feedforward.down", ("mlp.dense_4h_to_h",), (d,), bias=True),
    ]


def tensor_maps(config: GPTConfig) -> list[TensorMap]:
    """Each of our tensors and where it lies in a BloomForCausalLM; a tied head is left out."""
    maps = [TensorMap("embedding.weight", ("transformer.word_embeddings.weight",))]
    norms = {
        "embedding_norm": "transformer.word_embeddings_layernorm",
        "norm": "transformer.ln_f",
    }
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"{LAYERS}.{i}"
        norms[f"{ours}.attention_norm"] = f"{theirs}.input_layernorm"
        norms[f"{ours}.feedforward_norm"] = f"{theirs}.post_attention_layernorm"
        for projection in projections(config):
            maps += projection.tensor_maps(ours, theirs)
    for ours, theirs in norms.items():
        maps += [TensorMap(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]
    if not config.tie_embeddings:
        maps.append(TensorMap("head.weight", ("lm_head.weight",)))
    return maps
