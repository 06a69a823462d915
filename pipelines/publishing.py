"""Copies of finished runs at a place of the team's own: ``--publish s3://bucket/runs``."""

from __future__ import annotations

from pathlib import Path

from modelcore import storage
from modelcore.atomic import write_json
from modelcore.errors import InputError, TakenError
from modelcore.files import file_digest, read_json
from modelcore.stages import outputs
from pipelines import run_folder


def check(uri: str, name: str, folder: Path | None = None) -> None:
    """Makes sure that a new run of that name can be published at ``uri``: better now than after hours.

    Args:
        uri: A path or an ``s3://`` prefix.
        name: The run's name.
        folder: The run's folder, where it is known: no copy can be in there.

    Raises:
        InputError: If the place cannot be written.
        TakenError: If something of that name is there.
    """
    place = address(uri, name)
    _check_place(place, folder)
    if storage.exists(place) and (storage.list_children(place) or Path(place).is_file()):
        raise TakenError(f"publish: there is something at {place} already; choose another NAME, or another place")
    if storage.is_remote(uri):
        storage.check_writable(uri)


def check_again(folder: Path, uri: str) -> None:
    """Makes sure that the finished run in ``folder`` can be published at ``uri``, where it may be already, or in part.

    A run is known again by its ``run.json``, which is the first file of it that comes to S3.

    Raises:
        InputError: If the place cannot be written, or holds files that are not the run's.
        TakenError: If something else of that name is there.
    """
    place = address(uri, folder.name)
    _check_place(place, folder)
    if not storage.has_content(f"{place}/{run_folder.DONE}", folder / run_folder.DONE):
        check(uri, folder.name)
    elif not storage.is_remote(place) and (others := _others(folder, Path(place))):
        raise InputError(
            f"publish: {place} holds more than this run ({others[0]}), which would be lost; move that away"
        )


def publish(folder: Path, uri: str) -> str:
    """Copies the folder of a finished run to ``uri``, under its name; one that was interrupted goes on.

    ``manifest.json``, with the size and the SHA-256 sum of every other file, is written into the folder first and
    copied last: whoever finds it there can count on the rest.

    Returns:
        Where the copy is.

    Raises:
        InputError: If the place cannot be written.
        TakenError: If something else is there.
    """
    place = address(uri, folder.name)
    check_again(folder, uri)
    entries = {
        file.as_posix(): {"size": (folder / file).stat().st_size, "sha256": file_digest(folder / file)}
        for file in _files(folder)
    }
    write_json(folder / storage.MANIFEST, {"run": folder.name, "files": entries})
    storage.upload_directory(folder, place, claim=run_folder.DONE)
    return place


def is_finished(folder: Path) -> bool:
    """Whether the run in ``folder`` is complete, so that nothing but publishing is left to do."""
    return (folder / run_folder.DONE).is_file()


def address(uri: str, name: str) -> str:
    """Where a run of that name is published."""
    return f"{uri.rstrip('/')}/{name}"


def _check_place(place: str, folder: Path | None) -> None:
    """Makes sure that a folder can be put at ``place``, if it is a path."""
    if storage.is_remote(place):
        return
    path = Path(place)
    try:
        outputs.check_place(path)
    except OSError as error:  # of a folder that may not even be looked into
        raise InputError(f"publish: {place} cannot be written: {error.strerror}") from error
    if folder is not None and path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"publish: {place} is in the folder of the run itself; choose another place")


def _others(folder: Path, place: Path) -> list[Path]:
    """Files at ``place``, where the run in ``folder`` was published, that came from elsewhere."""
    known = set(_files(folder))
    if (place / storage.MANIFEST).is_file():
        known |= {Path(name) for name in read_json(place / storage.MANIFEST).get("files", ())}
    return [file for file in _files(place) if file not in known]


def _files(folder: Path) -> list[Path]:
    """Every file in ``folder`` but its manifest, by its path in there."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [file for file in files if file != Path(storage.MANIFEST)]
