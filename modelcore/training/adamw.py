"""AdamW (Loshchilov and Hutter 2019) by torch's fused kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from modelcore.training.local import local


class AdamW:
    """The steps of ``torch.optim.AdamW(fused=True)``, bit for bit, by the same kernel.

    torch's class imports torch's compiler when it is made, even where nothing is compiled: more than a second, and
    120 MiB.

    Args:
        groups: Parameters, and the weight decay of these.
        betas: Decay of the two moments.

    Attributes:
        state: What the next step depends on, by parameter: ``step``, ``exp_avg`` and ``exp_avg_sq``. A parameter that
            has had no gradient has none.
    """

    EPSILON = 1e-8

    def __init__(self, groups: Iterable[tuple[Sequence[nn.Parameter], float]], betas: tuple[float, float]) -> None:
        self._betas = betas
        self._groups: dict[tuple[float, torch.device, torch.dtype], list[nn.Parameter]] = {}
        for parameters, weight_decay in groups:
            for parameter in parameters:  # the kernel takes tensors of one device and dtype
                self._groups.setdefault((weight_decay, parameter.device, parameter.dtype), []).append(parameter)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, learning_rate: float, taken: Tensor) -> None:
        """Moves the parameters along their gradients.

        Args:
            learning_rate: This step's learning rate.
            taken: 0-D fp32 on the parameters' device: 1, or 0 to leave parameters and state as they are.
        """
        skipped = 1.0 - taken
        for (weight_decay, _, _), group in self._groups.items():
            gradients = {parameter: local(parameter.grad) for parameter in group if parameter.grad is not None}
            if not gradients:
                continue
            states = [self.state.get(parameter) or self._begin(parameter) for parameter in gradients]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [local(parameter) for parameter in gradients],
                list(gradients.values()),
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                [],
                steps,
                lr=learning_rate,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=weight_decay,
                eps=self.EPSILON,
                amsgrad=False,
                maximize=False,
                found_inf=skipped,  # the kernel skips the step by itself, without asking the device
            )
            torch._foreach_sub_(steps, [skipped] * len(steps))

    def _begin(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        self.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
        return self.state[parameter]
