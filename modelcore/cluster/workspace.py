"""The folder that the pipeline's pods and the jobs that they start both see: a claim that many pods may write to.

Each job has a folder of its own there, ``jobs/NAME``: ``inputs`` has what it reads and cannot read elsewhere, until no
job reads it any more; ``output`` and ``summary.json`` are what it leaves. These stay, so that a stage whose pod was
lost after its job was done finds them. A trial of a sweep keeps its checkpoints in ``trials``, until it is over.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from modelcore import storage
from modelcore.atomic import atomic_directory
from modelcore.errors import InputError, first_line
from modelcore.files import content_digest

MOUNTED = "/workspace"


def workspace() -> Path:
    """Where it is: ``MODELCORE_WORKSPACE``, or where the manifests mount it.

    Raises:
        InputError: If it is not there.
    """
    root = _named()
    if not root.is_dir():
        raise InputError(
            f"there is no folder {root} that the job's pods see too; mount the claim aic-gpt-workspace there, or name "
            "another such folder in MODELCORE_WORKSPACE"
        )
    return root


def find_workspace() -> Path | None:
    """Where it is, or None where there is none that can be written."""
    root = _named()
    return root if root.is_dir() and os.access(root, os.W_OK | os.X_OK) else None


def identify(place: Path | str) -> list[Any]:
    """What tells the content at ``place`` from any other, the same for each attempt of a task, as plain JSON values.

    Of an S3 address it is that itself. Of what lies in the workspace, which no attempt fetches anew, it is the path
    with the size and time of each file, for terabytes may lie there; of all else, which is read for the job's copy
    anyway, the SHA-256 sum of what it holds.

    Raises:
        InputError: If there is nothing at ``place``, or it cannot be read.
    """
    if storage.is_remote(place):
        return [str(place)]
    real = Path(os.path.realpath(place))
    if not real.exists():
        raise InputError(f"{place} does not exist; give a path that this stage can read, or s3://bucket/prefix")
    try:
        if not _is_shared(real):
            return [content_digest(real)]
        files = sorted(file for file in (real, *real.rglob("*")) if file.is_file())
        return [str(real), [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]]
    except OSError as error:
        raise InputError(f"{place} cannot be read: {first_line(error)}") from None


def _is_shared(real: Path) -> bool:
    return real.is_relative_to(os.path.realpath(workspace()))


def _named() -> Path:
    return Path(os.environ.get("MODELCORE_WORKSPACE") or MOUNTED)


class JobFolder:
    """The folder of one job.

    Args:
        job: The job's name.

    Attributes:
        path: The folder.
        output: Where the job writes what it is run for.
        summary: Where it writes its summary.
    """

    def __init__(self, job: str) -> None:
        self.path = workspace() / "jobs" / job
        self.output, self.summary = self.path / "output", self.path / "summary.json"

    def share(self, name: str, place: Path | str) -> str:
        """The address at which the job can read what lies at ``place``.

        An S3 address is that itself, as is a path in the workspace. Anything else is copied to the folder, once.

        Args:
            name: What it is to the stage, and in the folder.
            place: A file, a folder, or an S3 address.

        Raises:
            InputError: If there is no room in the workspace, or nothing can be written there.
        """
        if storage.is_remote(place):
            return str(place)
        real = Path(os.path.realpath(place))
        if _is_shared(real):
            return str(real)
        folder = self.path / "inputs" / name
        if not folder.exists():  # it appears when it is complete
            try:
                with atomic_directory(folder) as fresh:
                    if real.is_dir():
                        shutil.copytree(real, fresh, dirs_exist_ok=True)
                    else:
                        shutil.copy2(real, fresh / real.name)
            except OSError as error:
                raise InputError(f"{place} cannot be copied to {folder} for the job: {first_line(error)}") from None
        return str(folder if real.is_dir() else folder / real.name)

    def is_complete(self) -> bool:
        """Whether the job's output and summary are there."""
        return self.output.is_dir() and self.summary.is_file()

    def drop_inputs(self) -> None:
        """Removes the copies of inputs, which nobody needs any more."""
        shutil.rmtree(self.path / "inputs", ignore_errors=True)
