"""The gradient of a step: made piece by piece, added up over the ranks, and clipped."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from modelcore.training.local import local
from modelcore.training.loss import count_targets, summed_loss
from modelcore.training.parallel import GradientSum, Ranks


def accumulate_gradients(
    hidden: Callable[..., Tensor],
    head: nn.Module,
    batch: Sequence[Tensor],
    micro_batch_size: int,
    cast: Callable[[], AbstractContextManager[object]],
    gradient_sum: GradientSum | None = None,
) -> Tensor:
    """Adds the gradient of a batch's mean loss to the parameters' gradients, piece by piece.

    The mean is over all targets of the batch that count, on all ranks, however many of them each piece has.

    Args:
        hidden: Maps tokens (and ``documents=``, if the batch has them) to what ``head`` reads.
        head: The model's head, which also says where the model is.
        batch: Inputs and targets, each (sequences, time) int64, targets -100 where a token does not count; and for
            batches whose attention stays inside each document, likewise the document of each token.
        micro_batch_size: Sequences a piece; 0: all.
        cast: Makes the context in which the model runs.
        gradient_sum: Adds up the ranks' gradients; None: this process is alone.

    Returns:
        The batch's mean loss in nats a token, 0-D fp32, without a gradient; on all ranks the same.
    """
    ranks = gradient_sum.ranks if gradient_sum is not None else Ranks()
    device = next(itertools.chain(head.parameters(), head.buffers())).device  # a quantized head has buffers alone
    batch = [_move(part, device) for part in batch]
    count = ranks.sum(count_targets(batch[1]).float()).clamp_min(1)
    loss = torch.zeros((), device=device)
    rows = batch[0].shape[0]
    size = micro_batch_size or rows
    for start in range(0, rows, size):
        x, y, *documents = (part[start : start + size] for part in batch)
        with cast():
            states = hidden(x, documents=documents[0]) if documents else hidden(x)
            piece = summed_loss(states, head, y) / count
        last = start + size >= rows
        with gradient_sum.last_piece() if gradient_sum is not None and last else contextlib.nullcontext():
            piece.backward()  # type: ignore[no-untyped-call]
        loss += piece.detach()
    return ranks.sum(loss)


def clip_gradients(
    parameters: list[nn.Parameter],
    clip_norm: float,
    norm_of: Callable[[Mapping[nn.Parameter, Tensor]], Tensor] | None = None,
) -> Tensor:
    """Scales the whole gradient down to norm ``clip_norm`` where it is longer, and returns its norm before.

    Args:
        parameters: The parameters.
        clip_norm: The largest norm; 0: any.
        norm_of: The norm of gradients of which this process has a part
            (:meth:`modelcore.training.sharding.Sharding.norm`); None: it has all.
    """
    gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
    norm = nn.utils.get_total_norm(list(gradients.values()), foreach=True) if norm_of is None else norm_of(gradients)
    if clip_norm:
        scale = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients.values()], scale)
    return norm


def _move(tokens: Tensor, device: torch.device) -> Tensor:
    """``tokens`` on the device; the host goes on without waiting for it."""
    if device.type != "cuda":
        return tokens.to(device)
    return tokens.pin_memory().to(device, non_blocking=True)
