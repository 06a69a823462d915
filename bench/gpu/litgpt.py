"""litgpt's model, from a checkout of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from modelcore.gptx import GPTConfig


def build(folder: Path, config: GPTConfig, device: torch.device) -> Any:
    """Its model of our shape, with random weights.

    Args:
        folder: Where its package ``litgpt`` is.
        config: The shape: a Llama's.
        device: Where to make it.
    """
    # The package's own __init__ imports Lightning and all of its commands; the model needs none of them. Of the script
    # that converts checkpoints it takes a function that only the loading of old checkpoints calls.
    package, scripts = ModuleType("litgpt"), ModuleType("litgpt.scripts")
    package.__path__, scripts.__path__ = [str(folder / "litgpt")], []
    conversion = ModuleType("litgpt.scripts.convert_hf_checkpoint")
    vars(conversion)["qkv_reassemble"] = None
    sys.modules.update({module.__name__: module for module in (package, scripts, conversion)})
    vars(package)["Config"] = theirs = importlib.import_module("litgpt.config").Config
    shape = theirs(
        name="benchmark",
        block_size=config.context_length,
        vocab_size=config.vocab_size,
        padded_vocab_size=config.vocab_size,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_query_groups=config.n_kv_heads,
        n_embd=config.d_model,
        intermediate_size=config.d_ff,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=config.norm_eps,
        mlp_class_name="LLaMAMLP",
    )
    torch.manual_seed(0)
    with device:
        return importlib.import_module("litgpt.model").GPT(shape)
