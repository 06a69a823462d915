"""The checkpoints of a run at one place, a folder or an ``s3://`` address: which there are, which count, which go.

Each is a folder ``step-00000500``. The newest complete one counts. One with a higher number that is damaged is passed
over, and stays until the run gets there again and replaces it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from modelcore import storage
from modelcore.atomic import remove_leftovers
from modelcore.errors import InputError
from modelcore.training.checkpoint_files import NO_MANIFEST, find_fault

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = re.compile(r"step-(\d{8})")


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint after ``step`` steps."""
    return f"step-{step:08d}"


def checkpoint_names(place: Path | str) -> list[str]:
    """What is named like a checkpoint in a place, newest first.

    Raises:
        InputError: If S3 refuses, or cannot be reached.
    """
    return sorted(filter(CHECKPOINT_NAME.fullmatch, storage.list_children(place)), reverse=True)


def find_complete(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """The newest complete checkpoint in ``folder``, or None; and what is wrong with each newer one, by its name."""
    faults: dict[str, str] = {}
    for name in checkpoint_names(folder):
        fault = find_fault(folder / name)
        if fault is None:
            return folder / name, faults
        faults[name] = fault
    return None, faults


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in ``folder`` that a run goes on from, or None if there is none.

    Damaged ones are passed over with a warning. What a killed process left half-written is removed.

    Raises:
        InputError: As :func:`refuse_damaged`.
    """
    remove_leftovers(folder, CHECKPOINT_NAME)
    path, faults = find_complete(folder)
    for name, fault in faults.items():
        warn_of_damage(folder, name, fault)
    if path is None:
        refuse_damaged(folder, faults)
    return path


def warn_of_damage(place: Path | str, name: str, fault: str) -> None:
    """Says that a checkpoint in a place does not count, and why."""
    logger.warning("checkpoint %s/%s is passed over: %s", place, name, fault)


def refuse_damaged(place: Path | str, faults: Mapping[str, str]) -> None:
    """Refuses to start anew where there are only damaged checkpoints.

    To start anew could cost weeks, and would overwrite what can still be saved of them by hand.

    Args:
        place: Where they are.
        faults: What is wrong with each, by its name. Those without a manifest are no checkpoints.

    Raises:
        InputError: If there is one.
    """
    for name, fault in faults.items():
        if fault != NO_MANIFEST:
            raise InputError(
                f"every checkpoint in {place} is damaged, {name} because {fault}; "
                "put back a good one, or remove the folder to start anew"
            )


def remove_older(place: Path | str, newest: str, keep: int) -> None:
    """Removes all checkpoints in a place but the ``keep`` newest up to the one named ``newest``, and what is newer.

    Raises:
        InputError: If S3 refuses, or cannot be reached.
    """
    for name in [name for name in checkpoint_names(place) if name <= newest][keep:]:
        storage.delete_directory(f"{place}/{name}")


def remove_checkpoints(folder: Path) -> None:
    """Removes a run's checkpoints and their folder, the newest last: a run killed meanwhile finds it and is done."""
    for name in reversed(checkpoint_names(folder)):
        storage.delete_directory(folder / name)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's checkpoints while the block runs.

    The folder itself is locked, so nothing has to be cleaned up after a process that was killed. Where the file system
    has no locks, a warning says so.

    Args:
        folder: Where the checkpoints are; made if it is missing, and removed again if it stays empty.

    Raises:
        InputError: If another process is at it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"another process is training with the checkpoints in {folder}; wait for it or name another place"
        ) from None
    except OSError as error:
        logger.warning("checkpoints=%s cannot be locked: %s", folder, error)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(descriptor)
