"""Importing heavy libraries where they are used: without garbage collections, and timed apart from the work."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

_seconds = 0.0
_depth = 0


@contextmanager
def loading() -> Iterator[None]:
    """To be put around imports that take long.

    What a library makes when it is imported lives as long as the process; the garbage collector would go over it
    again and again, and take up to a quarter of the time.
    """
    global _seconds, _depth
    started, collecting = time.monotonic(), gc.isenabled()
    gc.disable()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if collecting:
            gc.enable()
        if not _depth:
            _seconds += time.monotonic() - started


def loading_seconds() -> float:
    """Wall time that this process has spent in :func:`loading` so far."""
    return _seconds
