"""Loss spikes: steps that stand out from those before them, and are better left out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WINDOW = 128
"""Steps that a step is compared with."""


class SpikeRule:
    """A step is a spike if its loss or gradient norm stands out upwards from those of the steps before it.

    It stands out if it is more than ``deviations`` standard deviations above the mean of the last :data:`WINDOW` finite
    steps, once there are half as many. Spikes are among these, so that a lasting change of level is soon taken as the
    new one. The rule is that of OLMo-core's skip-step optimizers (https://github.com/allenai/OLMo-core,
    ``olmo_core/optim/skip_step_optimizer.py``; 6 deviations there), but for one thing: a step with a strikingly *low*
    loss or norm is taken. The norm is the one before clipping.

    Nothing waits for the device: the window lies there, and so does the answer.

    Args:
        deviations: Standard deviations above the mean from which on a step is a spike; 0: none is.
        device: Where losses and norms are.
    """

    def __init__(self, deviations: float, device: torch.device) -> None:
        self.deviations = deviations
        self._window = torch.zeros(2, WINDOW, device=device)  # losses; gradient norms
        self._seen = torch.zeros((), device=device)
        self._slots = torch.arange(WINDOW, device=device)

    def is_spike(self, loss: Tensor, norm: Tensor, finite: Tensor) -> Tensor:
        """Judges a step and remembers it.

        Args:
            loss: 0-D fp32.
            norm: 0-D fp32.
            finite: 0-D fp32: 1, or 0 for a step whose loss or norm is not; that is no spike, and is not remembered.

        Returns:
            0-D fp32: 1 for a spike, else 0.
        """
        if not self.deviations:
            return torch.zeros_like(finite)
        newest = torch.stack((loss, norm))[:, None]  # (2, 1)
        filled = self._slots < self._seen  # (WINDOW,)
        count = self._seen.clamp(max=WINDOW)
        mean = self._window.sum(dim=1, keepdim=True) / count.clamp_min(1.0)  # (2, 1); empty slots are 0
        variance = (self._window - mean).square().where(filled, 0.0).sum(dim=1, keepdim=True) / (count - 1).clamp_min(
            1.0
        )
        high = (newest - mean > self.deviations * variance.sqrt()).any()
        spike = high & (self._seen >= WINDOW // 2) & finite.bool()
        here = (self._slots == self._seen % WINDOW) & finite.bool()
        self._window = newest.where(here, self._window)
        self._seen = self._seen + finite
        return spike.float()

    def state_tensors(self) -> dict[str, Tensor]:
        """What the rule remembers, by name."""
        return {"window": self._window, "seen": self._seen} if self.deviations else {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what :meth:`state_tensors` gave, on whatever device it lies."""
        if self.deviations:
            self._window = tensors["window"].to(self._window.device)
            self._seen = tensors["seen"].to(self._seen.device)
