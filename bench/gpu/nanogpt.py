"""nanoGPT's model, from a checkout of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

from modelcore.gptx import GPTConfig


def build(folder: Path, config: GPTConfig, device: torch.device) -> Any:
    """Its model of our shape, with random weights.

    Args:
        folder: Where its ``model.py`` is.
        config: The shape: GPT-2's with the exact GELU, biases everywhere or nowhere.
        device: Where to make it.
    """
    sys.path.insert(0, str(folder))
    theirs = importlib.import_module("model")
    shape = theirs.GPTConfig(
        block_size=config.context_length,
        vocab_size=config.vocab_size,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_embd=config.d_model,
        dropout=0.0,
        bias=config.attention_bias,
    )
    torch.manual_seed(0)
    with device:
        return theirs.GPT(shape)
