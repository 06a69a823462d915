"""Muon: momentum, orthogonalized by Newton-Schulz iterations (Jordan et al. 2024).

"Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/. Each hidden
matrix moves by an update whose singular values are all near one. Matrices of one shape, and the transposes of
that shape, are stacked, so that a step is a few batched products however many layers there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# The quintic's coefficients are Jordan's: steepest at zero, at the price of singular values that end in 0.7 … 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Replaces the singular values of each matrix by values near one.

    Args:
        matrices: (n, rows, columns) with rows ≤ columns, fp32 or bf16, which is also what it computes in.
        iterations: Newton-Schulz iterations. Fewer leave the small singular values smaller.

    Returns:
        A tensor of the same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # spectral norm at most 1
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)  # (n, rows, rows)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


@dataclass(frozen=True)
class _Part:
    """A matrix of its own inside a parameter: the rows ``start`` … ``end`` of it."""

    name: str
    parameter: nn.Parameter
    start: int
    end: int

    @property
    def transposed(self) -> bool:
        return self.end - self.start > self.parameter.shape[1]

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor of the parameter's shape, laid so that it is not taller than wide."""
        rows = tensor[self.start : self.end]
        return rows.T if self.transposed else rows


class Muon:
    """Muon over a set of matrices.

    A step is ``momentum ← lerp(momentum, gradient, 1 - μ)``, then Nesterov's look-ahead, orthogonalization, and
    ``weight ← (1 - rate · decay) · weight - rate · sqrt(max(1, rows / columns)) · update``.

    Args:
        matrices: By name, each parameter and the rows of the matrices that are fused in it, one above the other;
            ``[rows]`` for a plain one. Fused matrices are orthogonalized each for itself.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        momentum: μ.
        iterations: Newton-Schulz iterations a step.
    """

    def __init__(
        self,
        matrices: Mapping[str, tuple[nn.Parameter, Sequence[int]]],
        *,
        weight_decay: float,
        momentum: float = 0.95,
        iterations: int = 5,
    ) -> None:
        self.weight_decay, self.momentum, self.iterations = weight_decay, momentum, iterations
        self._parameters = {name: parameter for name, (parameter, _) in matrices.items()}
        stacks: dict[tuple[int, ...], list[_Part]] = {}
        for name, (parameter, rows) in matrices.items():
            start = 0
            for count in rows:
                part = _Part(name, parameter, start, start + count)
                stacks.setdefault(tuple(part.of(parameter).shape), []).append(part)
                start += count
        self._stacks = list(stacks.values())
        self._momenta = [parts[0].parameter.new_zeros(len(parts), *shape) for shape, parts in stacks.items()]

    @torch.no_grad()
    def step(self, learning_rate: float, taken: Tensor) -> None:
        """Moves the parameters along their gradients.

        Args:
            learning_rate: This step's learning rate.
            taken: 0-D fp32 on the parameters' device: 1, or 0 to leave parameters and momenta as they are, because
                the step is a spike or its gradients are not finite. A tensor, so that nothing waits for the device.
        """
        decay = 1.0 - learning_rate * self.weight_decay * taken
        torch._foreach_mul_(list(self._parameters.values()), decay)
        dtype = torch.bfloat16 if taken.is_cuda else torch.float32
        for parts, momentum in zip(self._stacks, self._momenta, strict=True):
            gradient = torch.stack([part.of(_gradient(part.parameter)) for part in parts])  # (n, rows, columns)
            gradient = gradient.where(taken.bool(), 0.0)
            momentum.lerp_(gradient, (1.0 - self.momentum) * taken)
            ahead = gradient.lerp_(momentum, self.momentum)
            update = orthogonalize(ahead.to(dtype), self.iterations).to(momentum.dtype)
            update.mul_(taken * -learning_rate)
            for part, matrix in zip(parts, update.unbind(), strict=True):
                rows, columns = part.end - part.start, part.parameter.shape[1]
                part.of(part.parameter).add_(matrix, alpha=max(1.0, rows / columns) ** 0.5)

    def state_tensors(self) -> dict[str, Tensor]:
        """The momentum of each parameter, in its shape, by name."""
        tensors = {name: torch.empty_like(parameter) for name, parameter in self._parameters.items()}
        for parts, momentum in zip(self._stacks, self._momenta, strict=True):
            for part, matrix in zip(parts, momentum.unbind(), strict=True):
                part.of(tensors[part.name]).copy_(matrix)
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what :meth:`state_tensors` gave."""
        for parts, momentum in zip(self._stacks, self._momenta, strict=True):
            for part, matrix in zip(parts, momentum.unbind(), strict=True):
                matrix.copy_(part.of(tensors[part.name]))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a matrix has no gradient; run the backward pass before the step")
    return parameter.grad
