"""The training loss: cross-entropy summed over the tokens that count.

A step's loss is this sum over all of its pieces (micro-batches, ranks) divided by the number of tokens that
count in all of them together, so how a batch is cut into pieces does not change its gradient.

Logits are never held for a whole batch: the head runs on chunks of tokens, and each chunk's gradient is taken at once,
while its logits are at hand. Peak memory is one chunk's, and nothing is computed twice, except where the head is an
adapted one.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelcore.data.loader import IGNORED
from modelcore.gptx.vocab_padding import PaddedHead

# Logits a chunk: few enough on a CPU to stay near its last cache, many on a GPU to keep it busy.
_CHUNK_ON_CPU = 1 << 22
_CHUNK_ON_GPU = 1 << 28


def count_targets(targets: Tensor) -> Tensor:
    """Number of targets that count, 0-D int64."""
    return (targets != IGNORED).sum()


def summed_loss(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """Cross-entropy of the next token, summed over the targets that count.

    Args:
        hidden: (batch, time, d_model), what the model's head reads.
        head: The model's head, (…, d_model) to (…, vocab_size); its ``out_features`` is vocab_size.
        targets: (batch, time) int64; ``IGNORED`` where a token does not count.

    Returns:
        The sum in nats, 0-D fp32.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()  # (N, d_model), (N,)
    if type(head) not in (nn.Linear, PaddedHead) or getattr(head, "bias", None) is not None:  # an adapted head
        return _loss_of_any_head(hidden, head, targets)
    dtype = hidden.dtype
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    with_gradient = torch.is_grad_enabled()  # asked here: inside of the function it is always off
    loss: Tensor = _HeadAndLoss.apply(  # type: ignore[no-untyped-call]
        hidden.to(dtype), head.weight, targets, head.out_features, with_gradient
    )
    return loss


def _loss_of_any_head(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """The same loss through whatever the head does; a chunk's logits are made a second time in the backward pass."""

    def loss(h: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(head(h).float(), target, ignore_index=IGNORED, reduction="sum")

    size = _chunk_size(hidden.device, cast(int, head.out_features))
    pieces = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return torch.stack([checkpoint(loss, h, target, use_reentrant=False) for h, target in pieces]).sum()


def _chunk_size(device: torch.device, vocab_size: int) -> int:
    """Tokens whose logits are held at once."""
    return max(1, (_CHUNK_ON_CPU if device.type == "cpu" else _CHUNK_ON_GPU) // vocab_size)


class _HeadAndLoss(torch.autograd.Function):
    """Head and cross-entropy in one, chunk by chunk; gradients are made in the forward pass.

    Products are in the dtype of ``hidden``; logits, loss and the sum of the weight's gradient in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, with_gradient: bool
    ) -> Tensor:
        for_weight = with_gradient and ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        ctx.weight_dtype, weight = weight.dtype, weight.to(hidden.dtype)
        chunk = _chunk_size(hidden.device, weight.shape[0])
        for start in range(0, hidden.shape[0], chunk):
            h = hidden[start : start + chunk]  # (n, d_model)
            target = targets[start : start + chunk, None]  # (n, 1)
            counts = target != IGNORED
            target = target.where(counts, 0)
            logits = (h @ weight.T).float()  # (n, vocab_size, and the padding's if there is any)
            logits[:, vocab_size:] = float("-inf")  # padding has probability 0, and its gradient is 0
            log_p = F.log_softmax(logits, dim=-1)
            total -= log_p.gather(1, target).mul_(counts).sum()
            if grad_hidden is None:
                continue
            # The logits' gradient is p - onehot(target). Rows that do not count are zeroed where it is narrow.
            grad = log_p.exp_().scatter_add_(1, target, log_p.new_tensor(-1.0).expand_as(target)).to(hidden.dtype)
            torch.mul(grad @ weight, counts, out=grad_hidden[start : start + chunk])
            if grad_weight is not None:
                if grad.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, h * counts)
                else:
                    grad_weight += grad.T @ (h * counts)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grad_output.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_output).to(ctx.weight_dtype),
            None,
            None,
            None,
        )
