"""How long each rank's own work takes: a step is as slow as the slowest rank, and all ranks seem equally slow.

So what counts is the time from the end of one step's sums to the moment when this rank's own gradients are made: the
optimizer, the next batch, forward and backward. What follows is waiting for others. With DDP that tells the ranks
apart; in shards or with shared matrices ranks also wait for each other within the pass, and what is left to see there
is a rank that is late with its batch.
"""

from __future__ import annotations

import logging
import statistics
import time

import torch

from modelcore.training.parallel import Ranks

logger = logging.getLogger(__name__)

MOST_TOLD = 16
"""Ranks up to which the log line tells the time of each."""


class OwnTime:
    """Measures the time of this rank's own work; nothing waits for the device or for other ranks until it is asked.

    Args:
        ranks: The processes that train together; alone, nothing is measured.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._on_gpu = ranks.device.type == "cuda"
        self._start: float | torch.cuda.Event | None = None
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """This rank's own work begins (anew, if nobody waited for it yet)."""
        if self._ranks.world_size > 1:
            self._start = self._event() if self._on_gpu else time.perf_counter()

    def end(self) -> None:
        """It ends; what comes now is waiting for others."""
        if isinstance(self._start, float):
            self._seconds.append(time.perf_counter() - self._start)
        elif self._start is not None:
            self._events.append((self._start, self._event()))
        self._start = None

    def report(self, tokens_per_step: int) -> dict[str, float]:
        """The ranks' times a step since this was last asked, as metrics; the first process logs them. All must ask.

        Args:
            tokens_per_step: Tokens a step over all ranks.

        Returns:
            ``slowest_rank``, ``slowest_rank_seconds`` and ``median_rank_seconds`` a step, ``slowest_to_median``, and
            ``slowest_rank_tokens_per_second``: what all would reach if nobody were faster, and nobody waited. Nothing
            for one process alone.
        """
        if self._ranks.world_size == 1:
            return {}
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += [start.elapsed_time(end) / 1000 for start, end in self._events]
        own = statistics.fmean(self._seconds) if self._seconds else 0.0
        self._seconds, self._events = [], []
        found = [float(part) for part in self._ranks.gather_all(torch.tensor(own))]
        slowest, median = max(found), statistics.median(found)
        metrics = {
            "slowest_rank": float(found.index(slowest)),
            "slowest_rank_seconds": slowest,
            "median_rank_seconds": median,
            "slowest_to_median": slowest / median if median else 1.0,
            "slowest_rank_tokens_per_second": tokens_per_step / slowest if slowest else 0.0,
        }
        if self._ranks.first:
            each = ",".join(f"{seconds:.4g}" for seconds in found) if len(found) <= MOST_TOLD else "-"
            logger.info(
                "ranks=%d slowest_rank=%d slowest_to_median=%.2f median_rank_seconds=%.4g rank_seconds=%s",
                len(found),
                metrics["slowest_rank"],
                metrics["slowest_to_median"],
                median,
                each,
            )
        return metrics

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
