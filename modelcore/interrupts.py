"""Ctrl-C and SIGTERM: a program that is asked to stop cleans up and ends with one line, however often it is asked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType

TOGETHER_SECONDS = 1.0  # `timeout` and some supervisors send a signal twice


class Interrupts:
    """Catches SIGINT and SIGTERM for the rest of the process.

    The first one becomes a KeyboardInterrupt. One that comes later, when cleaning up takes too long, or when a library
    has swallowed that exception, ends the process on the spot.

    Args:
        last_words: Called before the process ends on the spot; it must not fail.

    Attributes:
        number: The signal that came first, or None.
    """

    def __init__(self, last_words: Callable[[], None]) -> None:
        self.number: int | None = None
        self._last_words = last_words
        self._ignored = False
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in a job that a shell put into the background
                signal.signal(number, self._receive)

    @property
    def status(self) -> int:
        """The exit status by which a shell knows what ended the process: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.number or signal.SIGINT)

    def ignore(self) -> None:
        """From now on signals have no effect: what is left to do takes a moment and must not be cut in two."""
        self._ignored = True

    def heed(self) -> None:
        """From now on signals have their effect again."""
        self._ignored = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._ignored:
            return
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._since > TOGETHER_SECONDS:
            self._last_words()
            os._exit(self.status)
