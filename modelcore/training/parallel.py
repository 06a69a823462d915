"""Data parallelism: several processes train one model, each on its rows of every batch.

A step's gradient is the sum of all ranks' gradients, each of which was divided by the number of targets in the whole
batch; so it is the batch's gradient, however many ranks there are. Loss and gradient norm are the same on all ranks,
bit for bit, and what is decided by them (to leave a step out, to give up) is decided alike everywhere without a word.

Here every rank holds the whole model. How matrices are cut up between ranks is in
:mod:`modelcore.training.tensor_parallel` and :mod:`modelcore.training.sharding`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from modelcore import launch
from modelcore.errors import InputError

if TYPE_CHECKING:  # imports torch's compiler
    from torch.distributed.fsdp import FSDPModule

# How long ranks wait for each other: rank 0 may be fetching a checkpoint of many gigabytes.
_TIMEOUT = datetime.timedelta(minutes=30)

# Gradients are sent together up to this size, as DDP does (Li et al. 2020): large enough for the network, small enough
# that most of them travel while backward is still running.
BUCKET_BYTES = 100 << 20


@dataclass(frozen=True)
class Ranks:
    """The processes that train together; alone by default, when every method is free of charge.

    Processes that share each matrix (tensor parallelism) read the same rows of a batch, and are one rank together:
    ``rank`` and ``size`` count such groups.

    Attributes:
        rank: The number of this process's rows of a batch.
        size: Into how many parts a batch is cut.
        device: Where tensors must lie to be sent.
        tensor_rank: This process's number among those that share each matrix with it.
        tensor_parallel: How many these are.
        group: The processes with other rows of a batch and the same parts of matrices; None: all.
        tensor_group: The processes that share each matrix; None where each has them whole.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tensor_rank: int = 0
    tensor_parallel: int = 1
    group: dist.ProcessGroup | None = None
    tensor_group: dist.ProcessGroup | None = None

    @property
    def world_size(self) -> int:
        """How many processes there are in all."""
        return self.size * self.tensor_parallel

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: only it logs and writes."""
        return self.rank == 0 and self.tensor_rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor over the parts of a batch, in place, and returns it.

        Processes that share each matrix have the same value but for its rounding; their mean counts, so that all
        processes get the same bits.
        """
        if self.world_size > 1:
            dist.all_reduce(tensor)
            if self.tensor_parallel > 1:
                tensor /= self.tensor_parallel
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Each rank's tensor of one shape and dtype, in the order of ranks, on the CPU."""
        return self.gather_all(tensor)[:: self.tensor_parallel]

    def gather_all(self, tensor: Tensor) -> list[Tensor]:
        """The same of each process, those that share matrices one after another."""
        if self.world_size == 1:
            return [tensor.cpu()]
        parts = [torch.empty_like(tensor, device=self.device) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.to(self.device))
        return [part.cpu() for part in parts]

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Gives all ranks rank 0's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), group_src=0, group=self.group)

    def share_json(self, value: Any) -> Any:
        """The first process's plain JSON value; what others give is not looked at."""
        if self.world_size == 1:
            return value
        content = json.dumps(value).encode() if self.first else b""
        length = torch.tensor(len(content), device=self.device)
        dist.broadcast(length, 0)
        data = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        if self.first:
            data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(data, 0)
        return json.loads(data.cpu().numpy().tobytes())

    def check_alike(self, values: Mapping[str, Any]) -> None:
        """Makes sure that all processes were started for the same work; where they were not, they would wait for ever.

        Args:
            values: Plain JSON values by name.

        Raises:
            InputError: On a process that has another value than the first one; naming what differs.
        """
        own = json.loads(json.dumps(dict(values)))
        for name, value in self.share_json(own).items():
            if own.get(name) != value:
                raise InputError(
                    f"{name} is {own.get(name)!r} here and {value!r} on the first process; start all processes with "
                    "the same settings, on machines of one kind"
                )

    def share_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors by name, to itself without a copy; those that others give are not looked at."""
        if self.world_size == 1:
            return dict(tensors)
        described = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()}
        shared = {}
        for name, (shape, dtype) in self.share_json(described).items():
            if self.first:
                shared[name] = tensors[name].detach().to(self.device).contiguous()
            else:
                shared[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            dist.broadcast(shared[name], 0)
        return shared


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that torchrun launched, for as long as the block runs; alone without torchrun.

    Args:
        device: Where this process computes; GPUs talk through NCCL, CPUs through Gloo.
    """
    if launch.world_size() == 1:
        yield Ranks(device=device)
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    # torchrun keeps one store over its restarts, in which a new process would find the address of a dead one.
    store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore(f"restart-{launch.restart()}", store),
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
        device_id=device if on_gpu else None,
    )
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


class GradientSum:
    """Adds up gradients over all ranks, once a step and in place, beginning while the backward pass still runs.

    Buckets are laid out once, from the last parameter to the first, as backward reaches them, and are sent in that
    order on every rank. The layout never changes, so sums are made in the same order before and after a resume.

    Args:
        parameters: The parameters that are trained, in the model's order.
        ranks: Who adds up.
        bucket_bytes: Size at which a bucket is closed.
        fsdp: The model, where its other parameters are in shards: FSDP2 adds up each group's gradients in every
            backward pass, but those of groups that have the same shards (HSDP) only in the last.

    Attributes:
        before_waiting: Called when this rank's own gradients of a step are made.
    """

    before_waiting: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        ranks: Ranks,
        bucket_bytes: int = BUCKET_BYTES,
        fsdp: FSDPModule | None = None,
    ) -> None:
        self.ranks, self._fsdp = ranks, fsdp
        if fsdp is not None:
            fsdp.set_requires_all_reduce(False)
        self._buckets: list[list[nn.Parameter]] = []
        self._bucket_of: dict[nn.Parameter, int] = {}
        if ranks.size == 1:
            return
        filled = bucket_bytes
        for parameter in reversed(parameters):
            if filled >= bucket_bytes or parameter.dtype != self._buckets[-1][0].dtype:
                self._buckets.append([])
                filled = 0
            self._buckets[-1].append(parameter)
            self._bucket_of[parameter] = len(self._buckets) - 1
            filled += parameter.nbytes

    @contextlib.contextmanager
    def last_piece(self) -> Iterator[None]:
        """Around the backward pass of a step's last piece: when the block ends, the gradients are the sums."""
        if self.ranks.size == 1:
            yield
            self.before_waiting()
            return
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sent: list[dist.Work] = []
        if self._fsdp is not None:
            self._fsdp.set_requires_all_reduce(True)
        hooks = [p.register_post_accumulate_grad_hook(self._made) for p in self._bucket_of]  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            if self._fsdp is not None:
                self._fsdp.set_requires_all_reduce(False)
        self.before_waiting()
        for number in range(len(self._sent), len(self._buckets)):  # those with a parameter that got no gradient here
            self._send(number)
        for work in self._sent:
            work.wait()

    def _made(self, parameter: nn.Parameter) -> None:
        """Called by autograd when a parameter's gradient is complete."""
        self._missing[self._bucket_of[parameter]] -= 1
        while len(self._sent) < len(self._buckets) and self._missing[len(self._sent)] == 0:
            self._send(len(self._sent))

    def _send(self, number: int) -> None:
        gradients = []
        for parameter in self._buckets[number]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        group = cast(dist.ProcessGroup, self.ranks.group or dist.group.WORLD)
        self._sent.append(group.allreduce_coalesced(gradients))  # together, without a copy of them side by side
