"""The C library's allocator, told to hold no more than what is used."""

from __future__ import annotations

import contextlib
import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 1 << 20


def give_back_freed_memory() -> None:
    """Makes glibc return every freed block of a mebibyte or more to the system at once, for the whole process.

    Left alone, it raises that size with each block freed, up to 32 MiB (mallopt(3), ``M_MMAP_THRESHOLD``), and tensors
    whose sizes differ from step to step leave holes that nothing fills: a third of the memory when GPT-2 small is
    tuned. Does nothing under other C libraries.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_back_what_is_free() -> None:
    """Makes glibc return the pages of freed blocks to the system now (malloc_trim(3)); nothing under others."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
