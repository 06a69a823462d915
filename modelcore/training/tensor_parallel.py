"""Tensor parallelism: several ranks share each large matrix of a block (Shoeybi et al. 2019, Megatron-LM).

The first matrix of attention and of the feed-forward layer is cut by rows: a rank computes its own heads, its own
hidden units. The second is cut by columns and reads just these; its product is one summand of the result, and the ranks
add theirs up. So a block sums twice on the way forward and twice on the way back, and everything between the two
matrices happens without a word. Fused matrices (query, key and value; gate and up) are cut part by part, so that each
rank has of each part what belongs to its heads or units.

Norms, embeddings and the head stay whole: all ranks that share matrices see the same rows of a batch and compute the
same there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.gptx.linear import Linear
from modelcore.training.local import local


@dataclass(frozen=True)
class Cut:
    """Which part of a whole tensor a rank holds.

    Attributes:
        dim: The dimension that is cut.
        size: The whole tensor's size there.
        spans: Where the rank's rows (or columns) come from, in their order: (start in the whole tensor, length).
    """

    dim: int
    size: int
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def equal(cls, sizes: Sequence[int], dim: int, rank: int, ranks: int) -> Cut:
        """The cut for ``rank`` of ``ranks`` who share each of the fused parts of these sizes equally."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        spans = tuple((start + size // ranks * rank, size // ranks) for start, size in zip(starts, sizes, strict=True))
        return cls(dim, sum(sizes), spans)

    def of(self, whole: Tensor) -> Tensor:
        """The rank's part of a whole tensor, as memory of its own."""
        return torch.cat([whole.narrow(self.dim, start, length) for start, length in self.spans], self.dim)

    def whole_shape(self, shape: Sequence[int]) -> torch.Size:
        """The whole tensor's shape, where the rank's part has this one."""
        return torch.Size((*shape[: self.dim], self.size, *shape[self.dim + 1 :]))

    def boxes(self, offset: Sequence[int], box: Tensor) -> dict[torch.Size, Tensor]:
        """Where a box of the rank's part lies in the whole tensor.

        Args:
            offset: Where the box begins in the rank's part.
            box: The box, of the rank's part or of a part of it.

        Returns:
            By their offsets in the whole tensor, the boxes that it falls into; they share its memory.
        """
        found = {}
        first, end = offset[self.dim], offset[self.dim] + box.shape[self.dim]
        before = 0  # rows of the part that lie before the span
        for start, length in self.spans:
            low, high = max(first, before), min(end, before + length)
            if low < high:
                place = (*offset[: self.dim], start + low - before, *offset[self.dim + 1 :])
                found[torch.Size(place)] = box.narrow(self.dim, low - first, high - low)
            before += length
        return found


class ColumnLinear(Linear):
    """A linear layer of which each rank computes some outputs, from an input that all ranks have.

    Attributes:
        cuts: Which part of ``weight`` and of ``bias`` this rank holds.
    """

    cuts: Mapping[str, Cut]

    def __init__(self, linear: nn.Linear, sizes: Sequence[int], rank: int, group: dist.ProcessGroup) -> None:
        cut = Cut.equal(sizes, 0, rank, group.size())
        super().__init__(linear.in_features, sum(length for _, length in cut.spans), bias=False, device="meta")
        self.cuts, self._group = {"weight": cut, "bias": cut}, group.group_name
        self.weight = _part(linear.weight, cut)
        self.bias = None if linear.bias is None else _part(linear.bias, cut)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, inputs) to this rank's part of (…, outputs)."""
        return F.linear(_SumOfGradients.apply(x, self._group), self.weight, self.bias)  # type: ignore[no-untyped-call]


class RowLinear(Linear):
    """A linear layer of which each rank reads some inputs; the output is the sum over all ranks.

    Attributes:
        cuts: Which part of ``weight`` this rank holds; ``bias`` is whole.
    """

    cuts: Mapping[str, Cut]

    def __init__(self, linear: nn.Linear, rank: int, group: dist.ProcessGroup) -> None:
        cut = Cut.equal([linear.in_features], 1, rank, group.size())
        super().__init__(cut.spans[0][1], linear.out_features, bias=False, device="meta")
        self.cuts, self._group = {"weight": cut}, group.group_name
        self.weight, self.bias = _part(linear.weight, cut), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Maps this rank's part of (…, inputs) to (…, outputs)."""
        y: Tensor = _SumOfParts.apply(F.linear(x, self.weight), self._group)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


def share_matrices(model: GPT, rank: int, group: dist.ProcessGroup) -> None:
    """Cuts the blocks' matrices up between the processes of a group, in place.

    Args:
        model: A plain model, the same on all of them.
        rank: This process's number in the group.
        group: The processes.
    """
    config, ranks = model.config, group.size()
    hidden = [config.d_ff] * (2 if config.feedforward == "swiglu" else 1)
    for block in model.blocks:
        attention, feedforward = cast(Any, block).attention, cast(Any, block).feedforward
        attention.qkv = ColumnLinear(attention.qkv, config.qkv_sizes, rank, group)
        attention.out = RowLinear(attention.out, rank, group)
        attention.heads = [heads // ranks for heads in attention.heads]
        feedforward.up = ColumnLinear(feedforward.up, hidden, rank, group)
        feedforward.down = RowLinear(feedforward.down, rank, group)
    if model.slopes is not None:
        own = config.n_heads // ranks
        model.slopes = model.slopes[rank * own : (rank + 1) * own]


def check_tensor_parallel(config: GPTConfig, ranks: int) -> None:
    """Refuses models whose matrices ``ranks`` processes cannot share.

    Raises:
        InputError: Naming what they cannot share.
    """
    for name in ("n_heads", "n_kv_heads", "d_ff"):
        if (size := getattr(config, name)) % ranks:
            raise InputError(
                f"tensor_parallel is {ranks}, which does not divide the model's {name} of {size}; "
                "each rank takes an equal share"
            )
    if config.dropout:
        raise InputError(
            f"tensor_parallel is {ranks} and the model has a dropout of {config.dropout}, "
            "which ranks that share matrices would not drop alike; set dropout to 0 or tensor_parallel to 1"
        )


def cuts_of(model: nn.Module) -> dict[str, Cut]:
    """Which part of a parameter this rank holds, by the parameter's name; those that are whole are not in it."""
    return {
        f"{path}.{name}": module.cuts[name]
        for path, module in model.named_modules()
        if isinstance(module, ColumnLinear | RowLinear)
        for name, _ in module.named_parameters()
        if name in module.cuts
    }


def parts_of_all(part: Tensor, cut: Cut, group: dist.ProcessGroup) -> Iterator[tuple[Cut, Tensor]]:
    """The part that each process of the group has of a tensor, with its cut; all of them must ask."""
    ranks = group.size()
    parts = [torch.empty_like(part) for _ in range(ranks)]
    dist.all_gather(parts, part.contiguous(), group=group)
    lengths = [length * ranks for _, length in cut.spans]
    for rank, each in enumerate(parts):
        yield Cut.equal(lengths, cut.dim, rank, ranks), each


def _part(whole: Tensor, cut: Cut) -> nn.Parameter:
    return nn.Parameter(cut.of(local(whole).detach()), requires_grad=whole.requires_grad)


def _summed(tensor: Tensor, group_name: str) -> Tensor:
    """The sum over a group's processes, by operations that ``torch.compile`` knows."""
    operations = torch.ops._c10d_functional
    total: Tensor = operations.wait_tensor(operations.all_reduce(tensor.contiguous(), "sum", group_name))
    return total


class _SumOfGradients(torch.autograd.Function):
    """Gives its input; the gradient is summed over the processes. Megatron's f."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:
        ctx.group_name = group_name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _summed(grad, ctx.group_name), None


class _SumOfParts(torch.autograd.Function):
    """Sums its input over the processes; the gradient is the sum's. Megatron's g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:
        return _summed(x, group_name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
