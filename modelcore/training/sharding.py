"""How a model lies over the ranks that train it: whole on each (DDP), in shards (FSDP2), or with shared matrices.

``parallel`` and ``tensor_parallel`` in :class:`~modelcore.training.recipe.TrainingSettings` choose:

- ``ddp``: every rank has the whole model, and gradients are added up
  (:class:`~modelcore.training.parallel.GradientSum`).
- ``fsdp``: every matrix is cut by rows between ``shard_size`` ranks, and so are its gradient and the optimizer's
  state (Zhao et al. 2023; ZeRO 3, Rajbhandari et al. 2020). A block's matrices are brought together right before it
  runs, forward and backward, by PyTorch's :func:`~torch.distributed.fsdp.fully_shard`; where all of them take little
  of a GPU's memory, they stay together in between. With fewer ranks a shard than
  there are, each group of ``shard_size`` has a whole model among itself (hybrid sharding, HSDP).
- ``tensor_parallel`` ranks share each of the blocks' matrices and the work on them
  (:mod:`modelcore.training.tensor_parallel`), under either of the two.

The parameters of a model in shards are ``DTensor``s of their rows. Its vectors (norms, biases) are not cut: they are
few, every rank has them in fp32, and their gradients are added up as with DDP. Names of parameters stay the same. Of
matrices that ranks share, each has a part (:func:`modelcore.training.tensor_parallel.cuts_of` tells which), and shards
are shards of that part: :meth:`~modelcore.training.tensor_parallel.Cut.boxes` says where they lie in the whole matrix.

The arithmetic is that of one process. Master weights, gradients' sums and optimizer are fp32; where the model computes
in bf16, the blocks' matrices travel in bf16, which is what autocast would make of them.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig, pad_vocabulary
from modelcore.gptx.vocab_padding import without_padding
from modelcore.training.initialization import DeferredModel, allocate
from modelcore.training.local import local
from modelcore.training.parallel import GradientSum, Ranks
from modelcore.training.precision import computes_in_bf16
from modelcore.training.recipe import TrainingSettings

if TYPE_CHECKING:  # imports torch's compiler
    from torch.distributed.fsdp import FSDPModule


@dataclass(frozen=True)
class Sharding:
    """A model's place on the ranks.

    Attributes:
        model: The model.
        ranks: The processes that train it, with their part in it.
        fsdp: Whether its matrices are in shards.
        copies: On how many processes the same numbers of a parameter are.
    """

    model: GPT
    ranks: Ranks = field(default_factory=Ranks)
    fsdp: bool = False
    copies: Mapping[nn.Parameter, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every rank has the whole model."""
        return not self.fsdp and self.ranks.tensor_parallel == 1

    def gradient_sum(self) -> GradientSum:
        """What adds up the gradients that FSDP2 does not."""
        plain = [p for p in self.model.parameters() if p.requires_grad and (not self.fsdp or p.dim() < 2)]
        return GradientSum(plain, self.ranks, fsdp=cast(Any, self.model) if self.fsdp else None)

    def norm(self, tensors: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """The norm of all of a model's gradients, or of anything else of its parameters' shapes; 0-D fp32.

        Args:
            tensors: By parameter, what this rank has of it.
        """
        if self.whole:
            return nn.utils.get_total_norm(list(tensors.values()), foreach=True)
        norms = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors.values()]))
        copies = torch.tensor([self.copies[parameter] for parameter in tensors], device=norms.device)
        total = (norms.square() / copies).sum()
        dist.all_reduce(total)  # everywhere, so that all processes have the same bits
        return total.sqrt_()

    def forget_gathered(self) -> None:
        """To be called after forward passes without a backward one: they leave matrices together that may change."""
        if self.fsdp:
            for module in _fsdp_modules(self.model):
                module.reshard()

    def whole_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors as they would be in one process, on the CPU of the first; others get none. All must call.

        Args:
            tensors: Parameters, or tensors of their shapes, by names that are those of the parameters.
        """
        from modelcore.training.tensor_parallel import cuts_of, parts_of_all

        cuts, group, found = cuts_of(self.model), self.ranks.tensor_group, {}
        for name, tensor in tensors.items():
            tensor = tensor.detach()
            if hasattr(tensor, "full_tensor"):
                tensor = tensor.full_tensor()
            if (cut := cuts.get(name)) is not None and group is not None:
                whole = tensor.new_empty(cut.whole_shape(tensor.shape))
                for of_rank, part in parts_of_all(tensor, cut, group):
                    for offset, box in of_rank.boxes((0,) * part.dim(), part).items():
                        place = tuple(slice(o, o + n) for o, n in zip(offset, box.shape, strict=True))
                        whole[place] = box
                tensor = whole
            if self.ranks.first:
                found[name] = tensor.cpu()
        return found

    def whole_model(self) -> GPT | None:
        """The model as it would be in one process, for the first; others get None. All must call.

        Returns:
            The model itself where it is whole; else one with its weights, on the CPU and without padding.
        """
        if self.whole:
            return self.model if self.ranks.first else None
        from modelcore.models.weights import empty_model, fill_model

        tensors = self.whole_tensors(dict(self.model.named_parameters()))
        if not self.ranks.first:
            return None
        return fill_model(empty_model(self.model.config), without_padding(self.model, tensors))


def build(config: GPTConfig, settings: TrainingSettings, ranks: Ranks) -> Sharding:
    """A new model, its weights drawn from ``settings.seed`` as one process would draw them, laid over the ranks.

    Where it lies in pieces, no process holds more of it at any time than its own pieces and one whole matrix.

    Args:
        config: The model's shape.
        settings: What :func:`shard` takes, ``seed`` and ``pad_vocab_to_multiple``.
        ranks: All processes.

    Raises:
        InputError: As :func:`shard`.
    """
    torch.manual_seed(settings.seed)
    if ranks.world_size == 1 or (settings.parallel == "ddp" and settings.tensor_parallel == 1):
        return shard(pad_vocabulary(GPT(config), settings.pad_vocab_to_multiple), settings, ranks)
    deferred = DeferredModel(config)
    sharding = shard(pad_vocabulary(deferred.model, settings.pad_vocab_to_multiple), settings, ranks)
    deferred.draw()
    return sharding


def shard(model: GPT, settings: TrainingSettings, ranks: Ranks) -> Sharding:
    """Lays a model over the ranks in the way that the settings ask for, in place.

    Args:
        model: A plain model with the same weights on all ranks. It may lie on the CPU, and is brought to
            ``ranks.device``; in shards block by block, so that at no time it is there as a whole. One on the meta
            device gets memory for this process's part, of any content (:func:`build` makes new models so).
        settings: ``parallel``, ``shard_size``, ``tensor_parallel`` and ``precision`` are taken from here.
        ranks: All processes.

    Raises:
        InputError: If the processes cannot be grouped like that, or the model or optimizer cannot be cut.
    """
    tensor_parallel = settings.tensor_parallel
    if ranks.size % tensor_parallel:
        raise InputError(
            f"tensor_parallel is {tensor_parallel}, and {ranks.size} processes train; their number must be a multiple"
        )
    size = ranks.size // tensor_parallel
    fsdp = settings.parallel == "fsdp" and size > 1
    shards = (settings.shard_size or size) if fsdp else 1
    if fsdp and size % shards:
        raise InputError(
            f"shard_size is {shards}, and {size} ranks have rows of their own; it must divide their number"
        )
    if tensor_parallel == 1 and not fsdp:
        allocate(model, ranks.device)
        return Sharding(model, ranks)
    if settings.optimizer == "muon":
        raise InputError(
            "optimizer is muon, which needs whole matrices; with parallel fsdp or tensor_parallel above 1 take "
            "optimizer adamw"
        )
    if tensor_parallel > 1:
        from modelcore.training.tensor_parallel import check_tensor_parallel, cuts_of, share_matrices

        check_tensor_parallel(model.config, tensor_parallel)
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(
        ranks.device.type, (size // shards, shards, tensor_parallel), mesh_dim_names=("replicate", "shard", "tensor")
    )
    cut: set[nn.Parameter] = set()
    if tensor_parallel > 1:
        data = init_device_mesh(ranks.device.type, (size, tensor_parallel), mesh_dim_names=("data", "tensor"))
        rank, tensor_rank = divmod(ranks.rank, tensor_parallel)
        ranks = dataclasses.replace(
            ranks,
            rank=rank,
            size=size,
            tensor_rank=tensor_rank,
            tensor_parallel=tensor_parallel,
            group=data.get_group("data"),
            tensor_group=data.get_group("tensor"),
        )
        share_matrices(model, tensor_rank, data.get_group("tensor"))
    if fsdp:
        bf16 = computes_in_bf16(settings.precision, ranks.device)
        _fully_shard(model, mesh["replicate", "shard"] if shards < size else mesh["shard"], ranks.device, bf16)
    allocate(model, ranks.device)
    if tensor_parallel > 1:
        parameters = dict(model.named_parameters())
        cut = {parameters[name] for name in cuts_of(model)}
    copies = {
        parameter: ranks.world_size
        // (shards if fsdp and parameter.dim() >= 2 else 1)
        // (tensor_parallel if parameter in cut else 1)
        for parameter in model.parameters()
    }
    return Sharding(model, ranks, fsdp, copies)


def check_alike(settings: TrainingSettings, tokens: str, ranks: Ranks) -> None:
    """Makes sure that all processes train by the same settings, on the same tokens, in the same precision.

    Args:
        settings: This process's.
        tokens: Digest of what it trains on.
        ranks: All processes.

    Raises:
        InputError: On a process where something differs from the first one's, naming it.
    """
    precision = "bf16" if computes_in_bf16(settings.precision, ranks.device) else "fp32"
    shown = {"precision": f"{settings.precision} ({precision})", "tokens": tokens}  # "auto" is each machine's own
    ranks.check_alike(dataclasses.asdict(settings) | shown)


def _fully_shard(model: GPT, mesh: Any, device: torch.device, bf16: bool) -> None:
    """Cuts a model's matrices into shards, a group of them for each block and one for the rest."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    in_blocks = MixedPrecisionPolicy(
        torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    vectors = {parameter for parameter in model.parameters() if parameter.dim() < 2}
    keep = _fit_together(model, device, in_blocks.param_dtype or torch.float32)
    for block in model.blocks:
        if not model.embedding.weight.is_meta:
            block.to(device)
        # The last block's matrices are the first that the backward pass needs.
        again = not keep and block is not model.blocks[-1]
        fully_shard(block, mesh=mesh, mp_policy=in_blocks, reshard_after_forward=again, ignored_params=vectors)
    # Embedding and head stay fp32: the loss sums the head's gradient so. They stay together until the backward pass is
    # over, for the loss reads the head after the model's own forward pass.
    rest = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=rest, reshard_after_forward=False, ignored_params=vectors)
    register_fsdp_forward_method(model, "hidden")
    for module in _fsdp_modules(model):
        module.set_gradient_divide_factor(1.0)  # each rank's gradient is divided already
        module.set_force_sum_reduction_for_comms(True)
    # Nothing here changes what a block returned in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _fit_together(model: GPT, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a GPU can well keep all blocks' matrices, once they are together, until the backward pass needs them.

    They then travel once a step and not twice (ZeRO 2; Rajbhandari et al. 2020). A tenth of the memory is what it may
    take; a model that needs more needs its memory for other things.
    """
    if device.type != "cuda":
        return False
    size = sum(p.numel() for p in model.blocks.parameters() if p.dim() >= 2) * dtype.itemsize
    fit = torch.tensor(int(size <= torch.cuda.get_device_properties(device).total_memory / 10), device=device)
    dist.all_reduce(fit, dist.ReduceOp.MIN)  # alike everywhere, whatever GPUs there are
    return bool(fit)


def _fsdp_modules(model: GPT) -> list[FSDPModule]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
