"""Progress of long work: a bar on a terminal, a plain log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from modelcore import launch

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 5.0


class Progress:
    """Counts towards ``total`` and shows it.

    Args:
        name: What is being done, for example ``pretrain``.
        total: How many units there are, or None where that is unknown.
        unit: What is counted, for example ``step``.
        start: Units done before, by a run that is being resumed.
    """

    def __init__(self, name: str, total: int | None, unit: str, *, start: int = 0) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, start
        self._next_line = time.monotonic() + LOG_EVERY_SECONDS
        self._bar: tqdm[NoReturn] | None = None
        if sys.stderr.isatty() and launch.rank() == 0:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=name, unit=unit, initial=start, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1, **figures: float | str) -> None:
        """Counts ``count`` more units; ``figures`` (a loss, a rate) are shown beside the count."""
        self.done += count
        if self._bar is not None:
            if figures:
                self._bar.set_postfix(figures, refresh=False)
            self._bar.update(count)
        elif time.monotonic() >= self._next_line or self.done == self.total:
            self._next_line = time.monotonic() + LOG_EVERY_SECONDS
            shown = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in figures.items())
            of = f"/{self.total}" if self.total is not None else ""
            logger.info("%s %s=%d%s %s", self.name, self.unit, self.done, of, shown)
