"""Hugging Face's models of our shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.gptx import GPTConfig
from modelcore.models.architectures import architecture_of


def build(config: GPTConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers model with random weights, which attends through torch's fused attention."""
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs = AutoConfig.for_model(**architecture_of(config).to_huggingface(config), attn_implementation="sdpa")
    # No token ends a text: every call makes as many as it is asked for.
    theirs.bos_token_id = theirs.eos_token_id = None
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(theirs).to(dtype)


def loss_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss of a model, compiled or not, from its logits in fp32."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=inputs, use_cache=False).logits  # (B, T, vocab_size)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return loss
