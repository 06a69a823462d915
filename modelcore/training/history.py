"""What a run has done so far: its totals and curves, and the sums from which the next point of the curves is made."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modelcore.errors import InputError
from modelcore.training.recipe import TrainingSettings

MAX_SKIPPED_IN_A_ROW = 10
"""Steps in a row whose loss or gradient is not finite before the run is given up."""


@dataclass
class History:
    """What a run has done so far; checkpoints carry it.

    Attributes:
        steps: Steps done, those left out included.
        skipped_steps: Steps left out because loss or gradient was not finite.
        spike_steps: Steps left out as spikes.
        tokens: Tokens read.
        seconds: Time spent training, without evaluations and checkpoints.
        loss_curve: Columns ``step``, ``loss`` (nats a token, mean of the steps taken since the row before),
            ``bits_per_byte``, ``learning_rate``, ``gradient_norm``, ``tokens_per_second``, ``mfu``.
        heldout_curve: Columns ``step`` and ``bits_per_byte``.
    """

    steps: int = 0
    skipped_steps: int = 0
    spike_steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_curve: dict[str, list[float]] = field(default_factory=dict)
    heldout_curve: dict[str, list[float]] = field(default_factory=dict)


class Since:
    """Sums since the last point of the curves, kept on the device so that nothing waits for it in between."""

    def __init__(self, device: torch.device, saved: Mapping[str, Any] | None = None) -> None:
        self._device = device
        # Sum of losses, number of steps in it, the newest gradient norm, spikes, steps in a row that were not finite.
        self._figures = torch.tensor(saved["figures"] if saved else [0.0] * 5, device=device).unbind()
        self._steps: int = saved["steps"] if saved else 0
        self._tokens: int = saved["tokens"] if saved else 0
        self._seconds: float = saved["seconds"] if saved else 0.0
        self._start = self._now()

    def add(self, loss: Tensor, norm: Tensor, finite: Tensor, spike: Tensor, tokens: int) -> None:
        """Counts a step; one that was left out, because it was not finite or a spike, only as such."""
        taken = finite - spike
        losses, steps, last_norm, spikes, in_a_row = self._figures
        self._figures = (
            losses + loss.where(taken.bool(), 0.0),
            steps + taken,
            norm.where(taken.bool(), last_norm),
            spikes + spike,
            (in_a_row + 1.0) * (1.0 - finite),
        )
        self._steps += 1
        self._tokens += tokens

    def to_dict(self) -> dict[str, Any]:
        """The sums as plain JSON values, to begin with in a resumed run."""
        figures = torch.stack(self._figures).tolist()
        return {"figures": figures, "steps": self._steps, "tokens": self._tokens, "seconds": self._seconds}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of a block out."""
        self._seconds += self._now() - self._start
        yield
        self._start = self._now()

    def finish(self, history: History, settings: TrainingSettings) -> dict[str, float]:
        """Adds the sums to ``history``, starts new ones, and gives this stretch's metrics.

        Raises:
            InputError: If too many steps in a row were not finite.
        """
        losses, steps, norm, spikes, in_a_row = torch.stack(self._figures).tolist()
        with self.paused():
            history.skipped_steps += self._steps - round(steps) - round(spikes)
            history.spike_steps += round(spikes)
            history.tokens += self._tokens
            history.seconds += self._seconds
        if in_a_row >= min(MAX_SKIPPED_IN_A_ROW, settings.steps):
            raise InputError(
                f"loss or gradient was not finite in {round(in_a_row)} steps in a row, up to step {history.steps}; "
                f"a smaller learning_rate than {settings.learning_rate:g} or a longer warm-up may help"
            )
        metrics = {
            "loss": losses / steps if steps else math.nan,
            "gradient_norm": norm if steps else math.nan,
            "tokens_per_second": self._tokens / self._seconds,
        }
        self._figures = (*torch.zeros(4, device=self._device).unbind(), self._figures[4])
        self._steps, self._tokens, self._seconds = 0, 0, 0.0
        return metrics

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
