"""Copies of finished runs at a place of the team's own: ``--publish s3://bucket/runs``."""

from __future__ import annotations

from pathlib import Path

from modelcore import storage
from modelcore.atomic import write_json
from modelcore.errors import InputError
from modelcore.files import file_digest
from pipelines import run_folder


def check(uri: str, name: str) -> None:
    """Makes sure that a new run of that name can be published at ``uri``: better now than after hours.

    Raises:
        InputError: If something of that name is there, or the place cannot be written.
    """
    place = address(uri, name)
    if storage.list_children(place):
        raise InputError(f"publish: there is something at {place} already; choose another NAME, or another place")
    if storage.is_remote(uri):
        storage.check_writable(uri)


def publish(folder: Path, uri: str) -> str:
    """Copies the folder of a finished run to ``uri``, under its name; one that was interrupted goes on.

    ``manifest.json``, with the size and the SHA-256 sum of every other file, is written into the folder first and
    copied last: whoever finds it there can count on the rest.

    Returns:
        Where the copy is.

    Raises:
        InputError: If the place cannot be written.
    """
    place = address(uri, folder.name)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / storage.MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in files
    }
    write_json(folder / storage.MANIFEST, {"run": folder.name, "files": entries})
    storage.upload_directory(folder, place)
    return place


def is_finished(folder: Path) -> bool:
    """Whether the run in ``folder`` is complete, so that nothing but publishing is left to do."""
    return (folder / run_folder.DONE).is_file() and not (folder / run_folder.WORK).exists()


def address(uri: str, name: str) -> str:
    """Where a run of that name is published."""
    return f"{uri.rstrip('/')}/{name}"
