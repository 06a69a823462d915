"""The average of a run's weights, which is often better than the last of them (Polyak and Juditsky 1992)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from modelcore.training.local import local


class WeightAverage:
    """An exponential moving average: ``average ← d · average + (1 - d) · weights`` after each step.

    Early on ``d`` is less than ``decay``, min(decay, (1 + step) / (10 + step)), so that the random start is soon
    forgotten; the rule is that of TensorFlow's ``ExponentialMovingAverage``.

    Args:
        parameters: The parameters that are trained, by name.
        decay: 0 … 1, exclusive; 0: no average is kept, and nothing here does anything.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = [local(parameter) for parameter in parameters.values()] if decay else []
        self._averages = {name: p.detach().clone() for name, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int, taken: Tensor) -> None:
        """Moves the average towards the weights after a step.

        Args:
            step: The step's number, from 0.
            taken: 0-D fp32 on the parameters' device: 1, or 0 where the step was left out; then nothing changes.
        """
        if not self.decay:
            return
        averages = self._local_averages()
        towards = torch._foreach_sub(self._parameters, averages)
        torch._foreach_mul_(towards, taken * (1.0 - min(self.decay, (1 + step) / (10 + step))))
        torch._foreach_add_(averages, towards)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the parameters while the block runs."""
        weights = [parameter.detach().clone() for parameter in self._parameters]
        self.apply()
        try:
            yield
        finally:
            self._put(weights)

    def apply(self) -> None:
        """Puts the average into the parameters for good."""
        self._put(self._local_averages())

    def _local_averages(self) -> list[Tensor]:
        return [local(average) for average in self._averages.values()]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)

    def state_tensors(self) -> dict[str, Tensor]:
        """The averages by the parameters' names; none without a decay."""
        return dict(self._averages)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what :meth:`state_tensors` gave, on whatever device it lies."""
        for name, average in self._averages.items():
            average.copy_(tensors[name])
