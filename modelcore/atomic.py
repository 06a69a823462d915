"""Writing so that a reader, or a run that died half-way, never meets half a file.

Everything is written beside its destination and renamed; what stood there before stays until the new
content is complete and on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from modelcore.errors import InputError


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Opens a temporary file beside ``path`` and renames it to ``path`` when the block ends well.

    Args:
        path: The destination; its folder is created.
        mode: ``"wb"``, or ``"w"`` for UTF-8 text.
        **options: Further arguments of :func:`open`.

    Raises:
        InputError: If the disk is full.
    """
    path = Path(path)
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    with _readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with open(handle, mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``path`` that takes its place when the block ends well.

    A folder that stood at ``path`` is kept until then, and kept for good if the block fails.

    Raises:
        InputError: If the disk is full.
    """
    path = Path(path)
    with _readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield fresh
            for file in fresh.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
                    os.chmod(file, 0o666 & ~_umask())  # some libraries write files that only their owner may read
            os.chmod(fresh, 0o777 & ~_umask())
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
                os.rename(path, old / path.name)
                os.rename(fresh, path)
                shutil.rmtree(old)
            else:
                os.rename(fresh, path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, keys in the order given."""
    with atomic_file(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, without translating line ends."""
    with atomic_file(path, "w", newline="") as file:
        file.write(text)


def sync(path: Path) -> None:
    """Makes a file's content, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_durable(path: Path) -> None:
    """Writes a file or folder out to the disk, readable as the umask allows: some libraries write 0600."""
    if path.is_symlink():
        return
    os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~_umask())
    sync(path)


@contextlib.contextmanager
def _readable_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"no space left on the disk while writing {path}; free some and run again (nothing was replaced)"
            ) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
