"""How a figure is taken: ours and the peer's in turn, the median of several runs."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """What several runs gave.

    Attributes:
        median: Their median.
        low: The lowest.
        high: The highest.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


def timed(work: Callable[[], object], wait: Callable[[], object] | None = None) -> Callable[[], float]:
    """A function that does ``work`` once and gives the seconds it took.

    Args:
        work: What is timed.
        wait: Called before the clock starts and before it stops; for a GPU ``torch.cuda.synchronize``.
    """

    def run() -> float:
        if wait is not None:
            wait()
        start = time.perf_counter()
        work()
        if wait is not None:
            wait()
        return time.perf_counter() - start

    return run


def alternate(samples: Mapping[str, Callable[[], float]], *, runs: int = 5, warmup: int = 1) -> dict[str, Measurement]:
    """Takes a figure of each contender in turn, again and again, so that what slows the machine slows all of them.

    Args:
        samples: By contender, a function that does the work once and gives its figure, for example :func:`timed`'s.
        runs: How often each is measured; the order is turned round every time.
        warmup: How often each runs before, unmeasured.

    Returns:
        What was measured, by contender. It is also told on stderr.
    """
    figures: dict[str, list[float]] = {name: [] for name in samples}
    order = list(samples.items())
    for turn in range(warmup + runs):
        for name, sample in order:
            figure = sample()
            if turn >= warmup:
                figures[name].append(figure)
        order.reverse()
    measured = {name: Measurement(statistics.median(each), min(each), max(each)) for name, each in figures.items()}
    note(" | ".join(f"{name} {each}" for name, each in measured.items()))
    return measured


def note(text: str) -> None:
    """Tells whoever watches; stdout is for rows alone."""
    sys.stderr.write(f"  {text}\n")
