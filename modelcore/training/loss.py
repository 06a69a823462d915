"""The training loss: cross-entropy summed over the tokens that count.

A step's loss is this sum over all of its pieces (micro-batches, ranks) divided by the number of tokens that
count in all of them together, so how a batch is cut into pieces does not change its gradient.

Logits are never held for a whole batch: the head runs on chunks of tokens, and each chunk's gradient is taken at once,
while its logits are at hand. Peak memory is one chunk's, and nothing is computed twice.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.data.loader import IGNORED
from modelcore.gptx.linear import Linear
from modelcore.gptx.vocab_padding import PaddedHead
from modelcore.kernels import runs_kernels

# Logits a chunk: few enough on a CPU to stay near its last cache, many on a GPU to keep it busy.
_CHUNK_ON_CPU = 1 << 22
_CHUNK_ON_GPU = 1 << 30


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
    if type(head) not in (nn.Linear, Linear, PaddedHead) or getattr(head, "bias", None) is not None:  # an adapted head
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
    """The same loss through whatever the head does."""
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    with_gradient = torch.is_grad_enabled()
    return cast(Tensor, _AnyHeadAndLoss.apply(hidden, head, targets, with_gradient, *trained))  # type: ignore[no-untyped-call]


def _chunk_size(device: torch.device, vocab_size: int, tokens: int) -> int:
    """Tokens whose logits are held at once; chunks are as good as equal, none is a small rest."""
    most = max(1, (_CHUNK_ON_CPU if device.type == "cpu" else _CHUNK_ON_GPU) // vocab_size)
    return -(-tokens // -(-tokens // most))


class _HeadAndLoss(torch.autograd.Function):
    """Head and cross-entropy in one, chunk by chunk; gradients are made in the forward pass.

    Products are in the dtype of ``hidden``, and so are logits and their gradient; loss, softmax and the sum of the
    weight's gradient in fp32.
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
        chunk = _chunk_size(hidden.device, weight.shape[0], hidden.shape[0])
        for start in range(0, hidden.shape[0], chunk):
            h = hidden[start : start + chunk]  # (n, d_model)
            logits = h @ weight.T  # (n, vocab_size, and the padding's if there is any)
            loss, grad = _loss_and_gradient(logits, targets[start : start + chunk], vocab_size, with_gradient)
            total += loss
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + chunk])
            if grad_weight is not None:
                _add_product(grad_weight, grad.T, h)
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


class _AnyHeadAndLoss(torch.autograd.Function):
    """The same for a head of any kind, by the gradients that its own operations have."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: nn.Module, targets: Tensor, with_gradient: bool, *trained: nn.Parameter
    ) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grads = [torch.zeros_like(parameter) for parameter in trained] if with_gradient else []
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        chunk = _chunk_size(hidden.device, cast(int, head.out_features), hidden.shape[0])
        for start in range(0, hidden.shape[0], chunk):
            h = hidden[start : start + chunk].detach().requires_grad_(with_gradient)  # (n, d_model)
            with torch.set_grad_enabled(with_gradient):
                logits = head(h).float()  # (n, vocab_size)
                loss = F.cross_entropy(logits, targets[start : start + chunk], ignore_index=IGNORED, reduction="sum")
            total += loss.detach()
            if grad_hidden is not None:
                found = torch.autograd.grad(loss, [h, *trained], materialize_grads=True)
                grad_hidden[start : start + chunk] = found[0]
                for grad, more in zip(grads, found[1:], strict=True):
                    grad += more
        ctx.save_for_backward(grad_hidden, *grads)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *trained = (grad * grad_output.to(grad.dtype) for grad in ctx.saved_tensors)
        return hidden, None, None, None, *trained


def _loss_and_gradient(logits: Tensor, targets: Tensor, vocab_size: int, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """The summed loss of logits, and their gradient in their dtype, for which their memory may be used.

    Args:
        logits: (n, columns); those beyond ``vocab_size`` are padding, with probability and gradient 0.
        targets: (n,) int64; ``IGNORED`` where a row does not count.
        vocab_size: How many columns count.
        with_gradient: Whether the gradient is wanted.

    Returns:
        The sum in nats, 0-D fp32, and softmax(logits) - onehot(target), (n, columns).
    """
    if runs_kernels(logits.device):
        from modelcore.kernels.cross_entropy import cross_entropy_

        return cross_entropy_(logits, targets, vocab_size, IGNORED, with_gradient).sum(), logits
    counts = (targets != IGNORED)[:, None]  # (n, 1)
    targets = targets[:, None].where(counts, 0)
    logits[:, vocab_size:] = float("-inf")
    scores = logits.float()  # the logits themselves where they are fp32
    behind = scores.amax(dim=-1, keepdim=True) - scores.gather(1, targets)  # (n, 1)
    p = torch._softmax(scores, -1, False, out=scores)
    # -log p of the target by way of the likeliest token, whose probability never is so small that it vanishes.
    loss = (behind - p.amax(dim=-1, keepdim=True).log_()).mul_(counts).sum()
    if not with_gradient:
        return loss, logits
    grad = p.scatter_add_(1, targets, p.new_tensor(-1.0).expand_as(targets))
    return loss, grad.index_fill_(0, (~counts).nonzero()[:, 0], 0.0).to(logits.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a b``, in fp32 whatever the factors are in."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=torch.float32)
    else:
        total += a @ b
