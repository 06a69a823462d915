"""The learning rate over time: a linear warm-up, then one of four decays."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "wsd", "constant"]


def learning_rate_factor(
    step: int,
    *,
    steps: int,
    warmup_steps: int,
    schedule: Schedule,
    final_fraction: float,
    decay_fraction: float,
) -> float:
    """What the peak learning rate is multiplied by at ``step``.

    The first ``warmup_steps`` steps rise linearly, the last of them reaching the peak. What follows falls to
    ``final_fraction`` of the peak, reached at the last step: along half a cosine (Loshchilov and Hutter 2017), along a
    line, or (``wsd``, warm-up, stable, decay: Hu et al. 2024) not at all until the last ``decay_fraction`` of
    all steps and along a line then. ``constant`` never falls.

    Args:
        step: Number of the step, 0 … steps - 1.
        steps: Length of the run.
        warmup_steps: Length of the warm-up.
        schedule: The kind of decay.
        final_fraction: What is left of the peak at the end, 0 … 1.
        decay_fraction: For ``wsd``: the part of all steps that the decay takes, 0 … 1.

    Returns:
        A factor in 0 … 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    start = warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        start = max(warmup_steps, steps - round(decay_fraction * steps))
    if step < start:
        return 1.0
    # The step before the decay has the full rate, the last step the final one.
    progress = min((step + 1 - start) / max(steps - start, 1), 1.0)
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0 - progress
    return final_fraction + (1.0 - final_fraction) * left
