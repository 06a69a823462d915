"""RoPE in Hugging Face's ``config.json``: its base, its scaling, and what they mean for the context."""

from __future__ import annotations

import math
from typing import Any

from modelcore.errors import InputError
from modelcore.gptx import GPTConfig, RopeScaling
from modelcore.models.layout import require, whole_number

# Our names of the numbers that Hugging Face calls the same, for each kind.
_SAME = {
    "linear": (),
    "dynamic": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "truncate"),
}

_ORIGINAL = "original_max_position_embeddings"


def to_huggingface(config: GPTConfig) -> dict[str, Any]:
    """The fields that describe RoPE, in the new form and, for other programs, in the old one."""
    scaling = config.rope_scaling
    if scaling is None:
        parameters: dict[str, Any] = {"rope_type": "default"}
    else:
        parameters = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind in ("llama3", "yarn"):
            parameters[_ORIGINAL] = scaling.original_context
        parameters |= {name: getattr(scaling, name) for name in _SAME[scaling.kind]}
        parameters = {name: value for name, value in parameters.items() if value is not None}
    fields = {"rope_theta": config.rope_theta, "rope_parameters": parameters | {"rope_theta": config.rope_theta}}
    return fields if scaling is None else fields | {"rope_scaling": parameters}


def written_context(config: GPTConfig) -> int:
    """``max_position_embeddings``: the context; with dynamic scaling, Hugging Face means that before the stretching."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic" and scaling.original_context is not None:
        return scaling.original_context
    return config.context_length


def from_huggingface(fields: dict[str, Any]) -> tuple[float, RopeScaling | None, int]:
    """The base of RoPE, its scaling and the context that a ``config.json`` describes.

    As in transformers, ``rope_scaling`` counts before ``rope_parameters``.

    Raises:
        InputError: If the scaling is of a kind that is not supported, or a number of it is missing or wrong.
    """
    context = whole_number(fields, "max_position_embeddings", 2048)
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise InputError("rope_parameters differ from layer to layer; only one RoPE for all layers is supported")
    require(rope, "partial_rotary_factor", 1.0)
    theta = float(rope.get("rope_theta") or fields.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None, context
    if kind not in _SAME:
        raise InputError(f"RoPE scaling {kind!r} is not supported; readable: default, {', '.join(_SAME)}")
    numbers = {name: rope[name] for name in _SAME[kind] if rope.get(name) is not None}
    factor: Any = rope.get("factor")
    if kind in ("llama3", "yarn"):
        numbers["original_context"] = whole_number(fields, _ORIGINAL, whole_number(rope, _ORIGINAL, context))
    if kind == "yarn":
        factor = context / numbers["original_context"] if factor is None else factor
        numbers = _attention_factor(rope, factor) | numbers
    if kind == "dynamic":
        numbers["original_context"] = context
    scaling = RopeScaling(kind, factor, **numbers)
    return theta, scaling, int(scaling.factor * context) if kind == "dynamic" else context


def _attention_factor(rope: dict[str, Any], factor: float) -> dict[str, float]:
    """YaRN's factor of queries and keys from DeepSeek's two numbers, if they are given."""
    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if not (mscale and mscale_all_dim):
        return {}
    above, below = (0.1 * number * math.log(factor) + 1.0 for number in (mscale, mscale_all_dim))
    return {"attention_factor": above / below}
