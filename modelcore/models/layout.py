"""How our layers and tensors lie in another program's model, and how that program's configuration is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from modelcore.checks import check_flag, check_whole
from modelcore.errors import InputError


@dataclass(frozen=True)
class TensorMap:
    """Where one of our tensors lies in a foreign model.

    Attributes:
        ours: Our parameter's name.
        theirs: Their names, one for each part of ours, in the order of our rows.
        rows: Rows of ours that each part takes; needed only where there are several.
        transposed: Whether theirs is stored as (inputs, outputs).
        qkv_by_head: Number of heads, if theirs holds query, key and value of one head after the other, where
            ours holds all heads' queries, then all keys, then all values; otherwise 0.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False
    qkv_by_head: int = 0

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Their tensors, contiguous, from ours."""
        if self.qkv_by_head:
            tensor = _swap(tensor, 3, self.qkv_by_head)
        parts = torch.split(tensor, list(self.rows)) if len(self.theirs) > 1 else (tensor,)
        return {
            name: (part.t() if self.transposed else part).contiguous()
            for name, part in zip(self.theirs, parts, strict=True)
        }

    def join(self, parts: list[Tensor]) -> Tensor:
        """Our tensor, contiguous, from theirs in the order of ``theirs``."""
        turned = [part.t() if self.transposed else part for part in parts]
        tensor = torch.cat(turned) if len(turned) > 1 else turned[0]
        return (_swap(tensor, self.qkv_by_head, 3) if self.qkv_by_head else tensor).contiguous()

    def shapes(self, ours: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shape each of their tensors must have, given ours."""
        if self.transposed:
            return {self.theirs[0]: ours[::-1]}
        if len(self.theirs) == 1:
            return {self.theirs[0]: ours}
        return {name: (rows, *ours[1:]) for name, rows in zip(self.theirs, self.rows, strict=True)}


@dataclass(frozen=True)
class Projection:
    """A linear layer that every block has, and the foreign layers that it is made of.

    Attributes:
        ours: Our layer's name within a block, for example ``attention.qkv``.
        parts: Their layers' names within a layer of theirs, in the order of our rows.
        rows: Rows of ours that each part takes.
        bias: Whether it has a bias.
        transposed: Whether their weight is stored as (inputs, outputs).
        qkv_by_head: As in :class:`TensorMap`.
    """

    ours: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    bias: bool
    transposed: bool = False
    qkv_by_head: int = 0

    def tensor_maps(self, our_block: str, their_layer: str) -> list[TensorMap]:
        """Where its weight, and its bias if it has one, lie in one block.

        Args:
            our_block: Our block's name, for example ``blocks.0``.
            their_layer: Their layer's name, for example ``model.layers.0``.
        """
        maps = []
        for kind in ("weight", "bias") if self.bias else ("weight",):
            theirs = tuple(f"{their_layer}.{part}.{kind}" for part in self.parts)
            transposed = self.transposed and kind == "weight"
            maps.append(TensorMap(f"{our_block}.{self.ours}.{kind}", theirs, self.rows, transposed, self.qkv_by_head))
        return maps


def _swap(tensor: Tensor, outer: int, inner: int) -> Tensor:
    """Rows that lie as (outer, inner, rest), laid as (inner, outer, rest)."""
    return tensor.view(outer, inner, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def require(fields: dict[str, Any], name: str, value: Any) -> None:
    """Refuses a foreign configuration whose field ``name`` is present and not ``value``.

    Raises:
        InputError: Naming the field, what it is and what can be read.
    """
    if fields.get(name, value) != value:
        raise InputError(f"{name} is {fields[name]!r}; only {value!r} is supported")


def flag(fields: dict[str, Any], name: str, default: bool) -> bool:
    """A foreign configuration's switch ``name``, or ``default`` where it is absent or null.

    Raises:
        InputError: If it is neither true nor false.
    """
    value = fields.get(name)
    if value is None:
        return default
    check_flag(name, value)
    return cast(bool, value)


def whole_number(fields: dict[str, Any], name: str, default: int, general: str | None = None) -> int:
    """A foreign configuration's number ``name``, or ``default`` where it is absent or null.

    Args:
        fields: The configuration.
        name: The architecture's own name of the number.
        default: What transformers takes where there is none.
        general: The name that all architectures share in transformers, where the own one differs; it counts first.

    Raises:
        InputError: If it is no whole number of 1 or more.
    """
    if general is not None and fields.get(general) is not None:
        name = general
    value = fields.get(name)
    if value is None:
        return default
    check_whole(name, value)
    return cast(int, value)
