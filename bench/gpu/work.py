"""What the benchmarks work on: the two models that the field compares by, and how large their batches are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.benchmark import Options
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import get_config


@dataclass(frozen=True)
class Work:
    """A model and the batches that it is trained with.

    Attributes:
        config: The model's shape.
        batch_size: Sequences a step.
        sequence_length: Tokens a sequence.
    """

    config: GPTConfig
    batch_size: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.batch_size * self.sequence_length

    def at(self, options: Options) -> Work:
        """The work itself, or, where only the motions are gone through, the same kind of model in tiny."""
        if not options.small:
            return self
        config = dataclasses.replace(
            self.config,
            vocab_size=500,
            context_length=64,
            n_layers=2,
            d_model=64,
            n_heads=4,
            n_kv_heads=4 if self.config.n_kv_heads == self.config.n_heads else 2,
            d_ff=256,
        )
        return Work(config, batch_size=4, sequence_length=32)


GPT2 = Work(get_config("gpt2-small"), batch_size=32, sequence_length=1024)
"""GPT-2 124M as it was published: 50,257 tokens, biases."""

NANOGPT = dataclasses.replace(
    GPT2,
    config=dataclasses.replace(
        GPT2.config,
        vocab_size=50304,
        feedforward="gelu",
        attention_bias=False,
        feedforward_bias=False,
        norm_bias=False,
    ),
)
"""GPT-2 124M as nanoGPT's own benchmark has it: the vocabulary padded already, no biases, the exact GELU."""

TINYLLAMA = Work(get_config("tinyllama-1.1b"), batch_size=8, sequence_length=2048)
"""TinyLlama 1.1B."""


def device_of(options: Options) -> torch.device:
    """The GPU; to go through the motions a CPU will do.

    Raises:
        InputError: If there is no GPU and figures are asked for.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not options.small:
        raise InputError("torch sees no GPU; --small goes through the motions without one")
    return torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compiled(model: nn.Module, device: torch.device) -> Any:
    """A peer's model under ``torch.compile``, as users run it on a GPU; on a CPU, where no figure counts, as it is."""
    return torch.compile(model) if device.type == "cuda" else model


def build(config: GPTConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> GPT:
    """Our model with random weights, made on the device; as when it is loaded, only parameters have the dtype."""
    torch.manual_seed(0)
    with device:
        model = GPT(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
