"""Mistral (Jiang et al. 2023), a Llama with a sliding window: its map to Hugging Face's MistralForCausalLM."""

from __future__ import annotations

import dataclasses
from typing import Any

from modelcore.gptx import GPTConfig
from modelcore.models import llama
from modelcore.models.layout import whole_number
from modelcore.models.llama import IGNORED, LAYERS, LORA_TARGETS, PREFIX, projections, tensor_maps

__all__ = [
    "IGNORED",
    "LAYERS",
    "LORA_TARGETS",
    "PREFIX",
    "from_huggingface",
    "matches",
    "projections",
    "tensor_maps",
    "to_huggingface",
]


def matches(config: GPTConfig) -> bool:
    """Whether ``config`` is a Mistral: a Llama but for its sliding window, without biases."""
    return (
        config.sliding_window is not None
        and llama.matches(dataclasses.replace(config, sliding_window=None))
        and not (config.attention_bias or config.feedforward_bias)
    )


def to_huggingface(config: GPTConfig) -> dict[str, Any]:
    """The fields of Hugging Face's ``config.json`` that describe a Mistral ``config``."""
    fields = llama.to_huggingface(config) | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": config.sliding_window,
    }
    del fields["attention_bias"], fields["mlp_bias"]
    return fields


def from_huggingface(fields: dict[str, Any]) -> GPTConfig:
    """The configuration that a ``config.json`` of model type ``mistral`` describes.

    One whose ``sliding_window`` is null is a Llama, and is written back as such.

    Raises:
        InputError: If the file describes a variant that GPTConfig has no field for.
    """
    defaults = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    }
    fields = defaults | fields | {"attention_bias": False, "mlp_bias": False}
    config = llama.from_huggingface(fields)
    if fields["sliding_window"] is None:
        return config
    return dataclasses.replace(config, sliding_window=whole_number(fields, "sliding_window", 4096))
