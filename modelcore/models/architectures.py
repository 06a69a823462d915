"""The architectures that have a counterpart in Hugging Face's transformers."""

from __future__ import annotations

from typing import Any, Protocol

from modelcore.errors import InputError
from modelcore.gptx import GPTConfig
from modelcore.models import bloom, gpt2, llama, mistral, mpt
from modelcore.models.layout import Projection, TensorMap


class Architecture(Protocol):
    """What each architecture's file has."""

    PREFIX: str
    LAYERS: str
    IGNORED: tuple[str, ...]
    LORA_TARGETS: tuple[str, ...]

    def matches(self, config: GPTConfig) -> bool:
        """Whether ``config`` is one of this architecture."""

    def to_huggingface(self, config: GPTConfig) -> dict[str, Any]:
        """``config`` as fields of Hugging Face's ``config.json``."""

    def from_huggingface(self, fields: dict[str, Any]) -> GPTConfig:
        """The configuration that Hugging Face's fields describe."""

    def projections(self, config: GPTConfig) -> list[Projection]:
        """The linear layers of a block."""

    def tensor_maps(self, config: GPTConfig) -> list[TensorMap]:
        """Each of our tensors and where it lies in Hugging Face's model."""


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "bloom": bloom,
    "mpt": mpt,
}
"""By Hugging Face's name of the model type."""


def architecture_of(config: GPTConfig) -> Architecture:
    """The architecture that ``config`` belongs to.

    Raises:
        InputError: If it has no counterpart in transformers.
    """
    for architecture in ARCHITECTURES.values():
        if architecture.matches(config):
            return architecture
    raise InputError(
        f"a model with {config.positions} positions, {config.norm} and {config.feedforward} has no Hugging Face "
        "counterpart here: GPT-2 has learned positions, layernorm, gelu and biases everywhere; Llama has rope, "
        "rmsnorm and swiglu; Mistral the same with a sliding window and no biases; BLOOM alibi, layernorm, gelu_tanh, "
        "an embedding norm and biases everywhere; MPT alibi, layernorm, gelu and no biases"
    )
