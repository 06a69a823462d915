"""The processes that a run's stages are: found, and ended."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import psutil

GRACE_SECONDS = 3.0


def end_stages(root: Path, *, gently: bool = True) -> None:
    """Ends what runs for the pipeline with the folder ``root``, also what outlived the process that started it.

    Args:
        root: KFP's folder of the run.
        gently: Interrupt first, so that a stage can remove its temporary files, and kill what is left after
            GRACE_SECONDS.
    """
    processes = _stages(root)
    if gently:
        _send(processes, signal.SIGINT)
        _, processes = psutil.wait_procs(processes, GRACE_SECONDS)
    _send(processes, signal.SIGKILL)
    psutil.wait_procs(processes, GRACE_SECONDS)


def _stages(root: Path) -> list[psutil.Process]:
    """KFP's executors whose command line names a file under ``root``, and all processes below them."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "kfp.dsl.executor_main" in line and f"{root}/" in line:
                found |= {process, *process.children(recursive=True)}
    return list(found)


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
