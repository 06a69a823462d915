"""A vocabulary padded for speed: the embedding and the head get rows beyond the last token id, and nothing shows them.

Matrix products run fastest where their sizes are multiples of 64 or so, and a vocabulary seldom is one. The rows are
zero and stay zero: no id reads them, and the loss gives them no gradient. Logits end at ``vocab_size``; so do all
tensors that leave the model, through ``state_dict`` or :func:`without_padding`. Padding is a matter of one process,
decided anew by each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.errors import InputError
from modelcore.gptx.linear import Linear
from modelcore.gptx.transformer import GPT


class _Padded(nn.Module):
    """A module whose ``weight`` has rows beyond ``vocab_size``, which its state dict leaves out."""

    weight: Tensor
    vocab_size: int

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"][: self.vocab_size]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        padded = dict(state_dict)
        if (tensor := padded.get(f"{prefix}weight")) is not None:
            padded[f"{prefix}weight"] = _pad(tensor, self.vocab_size, self.weight.shape[0])
        super()._load_from_state_dict(padded, prefix, *arguments)


class PaddedEmbedding(_Padded, nn.Embedding):
    """The token embedding, with rows that no id reads."""

    def __init__(self, weight: nn.Parameter, vocab_size: int) -> None:
        super().__init__(vocab_size, weight.shape[1], device="meta")
        self.weight, self.vocab_size = weight, vocab_size


class PaddedHead(_Padded, Linear):
    """The head, with rows whose logits are computed and cut off.

    Attributes:
        weight: (rows, d_model), of which the first ``vocab_size`` count.
        vocab_size: Number of logits; ``out_features`` too.
    """

    def __init__(self, weight: nn.Parameter, vocab_size: int) -> None:
        super().__init__(weight.shape[1], vocab_size, bias=False, device="meta")
        self.weight, self.vocab_size = weight, vocab_size

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, d_model) to (…, vocab_size)."""
        return F.linear(x, self.weight)[..., : self.vocab_size]


@torch.no_grad()
def pad_vocabulary(model: GPT, multiple: int) -> GPT:
    """Rounds the rows of embedding and head up to a multiple, in place.

    No random number is drawn, and what the model computes stays the same. Optimizers must be made afterwards: the
    parameters are new ones.

    Args:
        model: A plain model; adapters come after.
        multiple: 1 leaves the model as it is.

    Returns:
        ``model``.

    Raises:
        InputError: If ``multiple`` is below 1.
    """
    if multiple < 1:
        raise InputError(f"the vocabulary cannot be padded to a multiple of {multiple}; give 1 or more")
    vocab_size = model.config.vocab_size
    rows = -(-vocab_size // multiple) * multiple
    if rows == vocab_size:
        return model
    if type(model.embedding) is not nn.Embedding or type(model.head) is not Linear:
        raise ValueError("only a plain embedding and head can be padded: once, and before adapters are added")
    embedding = _parameter(model.embedding.weight, vocab_size, rows)
    head = embedding if model.config.tie_embeddings else _parameter(model.head.weight, vocab_size, rows)
    training = model.training
    model.embedding, model.head = PaddedEmbedding(embedding, vocab_size), PaddedHead(head, vocab_size)
    return model.train(training)


def without_padding(model: GPT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a model's parameters, or of an optimizer's state for them, as they were without padding.

    Args:
        model: The model, padded or not.
        tensors: By names that end with their parameter's: ``embedding.weight``, ``adamw.exp_avg.embedding.weight``.
    """
    return {name: tensor[: model.config.vocab_size] if _rows(model, name, tensor) else tensor
            for name, tensor in tensors.items()}  # fmt: skip


def rows_without_padding(model: GPT, name: str, tensor: Tensor) -> int | None:
    """Rows of a tensor that :func:`without_padding` keeps; None: all, for it has no padding."""
    return model.config.vocab_size if _rows(model, name, tensor) else None


def with_padding(model: GPT, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`without_padding` gave, with rows of zeros for the padding that ``model`` has."""
    padded = dict(tensors)
    for name, tensor in tensors.items():
        if rows := _rows(model, name, tensor):
            padded[name] = _pad(tensor, model.config.vocab_size, rows)
    return padded


def _rows(model: GPT, name: str, tensor: Tensor) -> int:
    """Rows that a matrix of this name has in the padded model; 0 where it has no padding."""
    for part, module in (("embedding", model.embedding), ("head", model.head)):
        full = f"{part}.weight"
        if (
            isinstance(module, PaddedEmbedding | PaddedHead)
            and tensor.dim() == 2
            and (name == full or name.endswith(f".{full}"))
        ):
            return module.weight.shape[0]
    return 0


def _parameter(weight: Tensor, vocab_size: int, rows: int) -> nn.Parameter:
    return nn.Parameter(_pad(weight, vocab_size, rows), requires_grad=weight.requires_grad)


def _pad(tensor: Tensor, vocab_size: int, rows: int) -> Tensor:
    return F.pad(tensor, (0, 0, 0, rows - vocab_size))
