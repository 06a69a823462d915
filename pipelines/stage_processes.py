"""A run's stages as processes of this machine: started by KFP's SubprocessRunner, found, and ended."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

GRACE_SECONDS = 3.0


class Processes:
    """Stages in processes of the Python that drives them."""

    name = "subprocess"

    @contextlib.contextmanager
    def running(self, root: Path, parameters: Mapping[str, Any]) -> Iterator[Any]:
        """KFP's runner for one run, set up.

        Args:
            root: KFP's folder of the run.
            parameters: The run's.
        """
        from kfp import local

        warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom")
        yield local.SubprocessRunner(use_venv=False)

    def end(self, root: Path, *, gently: bool = True) -> None:
        """Ends the stages of the run with KFP's folder ``root``; see :func:`end_stages`."""
        end_stages(root, gently=gently)


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
