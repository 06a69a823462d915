"""What one rank holds of a run's tensors, and the plans by which torch's distributed checkpoints save and load it.

A tensor may be whole on every rank, or lie in pieces on several: boxes of it, each at an offset. torch's planners
(:mod:`torch.distributed.checkpoint`) leave out what several ranks hold alike, and find for each box to be filled which
saved boxes it overlaps. So a checkpoint does not know by how many ranks, or in which manner, it will be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.gptx.vocab_padding import rows_without_padding
from modelcore.training.tensor_parallel import Cut, cuts_of


@dataclass(frozen=True)
class Pieces:
    """What this rank holds of a tensor.

    Attributes:
        shape: The whole tensor's.
        dtype: Its type.
        boxes: By the offset of each box in the whole tensor, the box, on any device. None is empty.
    """

    shape: torch.Size
    dtype: torch.dtype
    boxes: Mapping[torch.Size, Tensor]

    @property
    def chunks(self) -> list[ChunkStorageMetadata]:
        """The boxes as torch's planners name them."""
        return [ChunkStorageMetadata(offset, box.shape) for offset, box in self.boxes.items()]


def pieces_of(tensor: Tensor, rows: int | None = None, cut: Cut | None = None) -> Pieces:
    """What this rank holds of ``tensor``; the boxes share its memory.

    Args:
        tensor: A ``DTensor``, however it is sharded; or a plain tensor.
        rows: The rows that count, where there are more; None: all.
        cut: Which part of a whole tensor ``tensor`` is; None: ``tensor`` is whole.
    """
    tensor = tensor.detach()
    shape = tensor.shape if rows is None else torch.Size((rows, *tensor.shape[1:]))
    if isinstance(tensor, DTensor):
        _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        box = tensor.to_local()
    else:
        offset, box = (0,) * tensor.dim(), tensor
    if rows is not None:
        box = box[: max(0, rows - offset[0])]
    if not box.numel():
        return Pieces(shape if cut is None else cut.whole_shape(shape), tensor.dtype, {})
    if cut is None:
        return Pieces(shape, tensor.dtype, {torch.Size(offset): box})
    return Pieces(cut.whole_shape(shape), tensor.dtype, cut.boxes(offset, box))


def pieces_of_part(model: GPT, tensors: Mapping[str, Tensor]) -> dict[str, Pieces]:
    """What this rank holds of a part's tensors, without the rows by which ``model`` pads its vocabulary.

    Args:
        model: The model, laid over the ranks.
        tensors: By names of parameters, or such that end with one. Those of a parameter's shape lie as it does.
    """
    cuts, parameters = cuts_of(model), dict(model.named_parameters())
    pieces = {}
    for name, tensor in tensors.items():
        owner = owner_of(parameters, name)
        cut = cuts.get(owner) if tensor.shape == parameters.get(owner, tensor).shape else None
        pieces[name] = pieces_of(tensor, rows_without_padding(model, name, tensor), cut)
    return pieces


def owner_of(parameters: Mapping[str, Tensor], name: str) -> str:
    """The name of the parameter that a tensor belongs to, with which its name ends; "" if it belongs to none."""
    while name and name not in parameters:
        name = name.partition(".")[2]
    return name


class SavePlanner(DefaultSavePlanner):
    """Plans to save a mapping of names to :class:`Pieces`; of those that ranks hold alike the lowest rank saves one."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)

    def create_local_plan(self) -> SavePlan:
        """An item for each box."""
        items = [
            WriteItem(
                MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, TensorProperties(dtype=pieces.dtype), pieces.shape),
            )
            for name, pieces in self.state_dict.items()
            for chunk in pieces.chunks
        ]
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The box of an item."""
        return _box(self.state_dict, write_item.index)


class LoadPlanner(DefaultLoadPlanner):
    """Plans to fill a mapping of names to :class:`Pieces` from a checkpoint saved by whatever number of ranks."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Takes over what is to be filled, and what there is."""
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        """An item for each saved box that a box here overlaps.

        Raises:
            InputError: If a tensor is missing, or of another shape.
        """
        items = []
        for name, pieces in self.state_dict.items():
            saved = self.metadata.state_dict_metadata.get(name) if self.metadata is not None else None
            if not isinstance(saved, TensorStorageMetadata):
                raise InputError(f"the checkpoint lacks {name}")
            if saved.size != pieces.shape:
                raise InputError(f"{name} has shape {tuple(saved.size)} in the checkpoint; {tuple(pieces.shape)} here")
            items += create_read_items_for_chunk_list(name, saved, pieces.chunks)
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The box that an item fills a part of."""
        return _box(self.state_dict, index)


def _box(state: Mapping[str, Pieces], index: MetadataIndex) -> Tensor:
    return state[index.fqn].boxes[cast(torch.Size, index.offset)]
