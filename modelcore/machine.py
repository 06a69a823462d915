"""What this process may use of the machine it is on, where a container's limits count, and how long it has run."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores this process may use: those it may run on, or a container's smaller share of their time, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Version 2 of control groups has both numbers in one file, version 1 a file each; "max" and -1 are no limit.
    limits = [_words("cpu.max"), [*_words("cpu/cpu.cfs_quota_us"), *_words("cpu/cpu.cfs_period_us")]]
    for quota, period in (limit for limit in limits if len(limit) == 2):
        if quota.isdigit():
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def memory_limit() -> int:
    """Bytes of memory this process may use: the machine's, or a container's smaller limit."""
    import psutil

    limits = [*_words("memory.max"), *_words("memory/memory.limit_in_bytes")]
    return min([psutil.virtual_memory().total, *(int(limit) for limit in limits if limit.isdigit())])


def process_seconds() -> float:
    """Seconds since this process was started, its interpreter's own start among them."""
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux
        # psutil adds the time of the boot, which is known in whole seconds: off by one where they are rounded.
        after_name = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), since the boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    import psutil

    return time.time() - psutil.Process().create_time()


def _words(file: str) -> list[str]:
    try:
        return (CGROUP / file).read_text(encoding="ascii").split()
    except OSError:
        return []
