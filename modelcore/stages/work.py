"""Where a stage keeps what it needs to go on after an interruption, and nobody needs afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def work_folder(out: Path) -> Path:
    """The folder for unfinished work on ``out``: ``MODELCORE_WORK``, or where that is not set the one ``out`` is in.

    Whoever runs stages again in fresh folders names one that stays. It never changes a result, which is why this may be
    an environment variable.
    """
    given = os.environ.get("MODELCORE_WORK")
    return Path(given) if given else out.absolute().parent


@contextlib.contextmanager
def downloads(out: Path) -> Iterator[Path]:
    """A folder for what a stage that writes ``out`` downloads, removed when the block ends.

    But a download that was interrupted stays (:func:`modelcore.atomic.resumable_directory`), for the next run of the
    stage to go on with.
    """
    folder = work_folder(out) / f".{out.name}.downloads"
    try:
        yield folder
    finally:
        if folder.is_dir():
            for complete in [path for path in folder.iterdir() if not path.name.endswith(".partial")]:
                shutil.rmtree(complete, ignore_errors=True)
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


@contextlib.contextmanager
def scratch_beside(out: Path, stage: str) -> Iterator[Path]:
    """A temporary folder beside ``out``: where there is room for the outputs, there is for this."""
    folder = out.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{stage}.") as scratch:
        yield Path(scratch)
