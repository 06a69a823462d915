"""The named configurations."""

from __future__ import annotations

from modelcore.errors import InputError
from modelcore.gptx import GPTConfig
from modelcore.models import gpt2, llama

PRESETS = gpt2.PRESETS | llama.PRESETS


def get_config(name: str) -> GPTConfig:
    """The configuration called ``name``.

    Raises:
        InputError: If there is none; the message lists the names.
    """
    if not isinstance(name, str) or name not in PRESETS:  # what a YAML file says may be no text
        raise InputError(f"unknown model configuration {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
