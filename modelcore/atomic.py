"""Writing so that a reader, or a run that died half-way, never meets half a file.

Everything is written beside its destination and renamed; what stood there before stays until the new
content is complete and on the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from modelcore.errors import InputError, TakenError

_FULL = re.compile(r"No space left on device|Disk quota exceeded|disk is full|\d+ requested and \d+ written")
# What tempfile makes of the prefix and suffix below.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.(?P<kind>tmp|old)")


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
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    with atomic_path(path) as fresh, open(fresh, mode, **options) as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields the path of an empty temporary file beside ``path``, which takes its place when the block ends well.

    For libraries that open files by their names.

    Raises:
        InputError: If the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    with _readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o666 & ~_umask())
            sync(Path(name))
            os.replace(name, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def atomic_directory(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yields an empty temporary folder beside ``path`` that takes its place when the block ends well.

    A folder that stood at ``path`` is kept until then, and kept for good if the block fails.

    Args:
        path: The destination.
        replace: Whether what stands there may be replaced; else only an empty folder is.

    Raises:
        InputError: If the disk is full.
        TakenError: If something stands at ``path`` that may not be replaced.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    with _readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield fresh
            put_in_place(fresh, path, replace)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # half of the new content, or all of the old


@contextlib.contextmanager
def resumable_directory(path: Path) -> Iterator[Path]:
    """As :func:`atomic_directory`, but what a block wrote that failed, or was killed, is there for the next one.

    It lies beside ``path`` under the name ``.NAME.partial``.

    Raises:
        InputError: If the disk is full, or another process is writing there.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    with _readable_disk_errors(path):
        fresh = path.with_name(f".{path.name}.partial")
        fresh.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(fresh, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"another process is writing {path}; wait for it or name another place") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield fresh
            put_in_place(fresh, path)
            shutil.rmtree(fresh, ignore_errors=True)  # what stood there before
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path, name: re.Pattern[str]) -> None:
    """Removes what killed processes left in ``folder`` of writing files or folders whose whole names fit ``name``.

    What was about to be replaced, and has no successor yet, is put back. Nobody else may be writing there now.
    """
    if not folder.is_dir():
        return
    for rest in folder.iterdir():
        parts = _TEMPORARY.fullmatch(rest.name)
        if parts is None or not name.fullmatch(parts["name"]):
            continue
        old, path = rest / parts["name"], folder / parts["name"]
        if parts["kind"] == "old" and old.exists() and not path.exists():
            os.rename(old, path)
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)


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


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, comes from a full disk or a used-up quota.

    Libraries that write by themselves (safetensors, NumPy, SQLite) say so in words of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def put_in_place(fresh: Path, path: Path, replace: bool = True) -> None:
    """Makes the folder ``fresh`` durable and puts it in the place of ``path``, in one step.

    Args:
        fresh: The new content, on the same file system; if something stood at ``path``, that is there afterwards.
        path: The destination.
        replace: As in :func:`atomic_directory`.
    """
    for item in (*fresh.rglob("*"), fresh):
        if not item.is_symlink():  # some libraries write files that only their owner may read
            os.chmod(item, (0o777 if item.is_dir() else 0o666) & ~_umask())
            sync(item)
    if replace and path.exists():
        _replace(path, fresh)
    else:
        try:
            os.rename(fresh, path)  # which replaces an empty folder alone
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise TakenError(f"something else came to stand at {path} meanwhile; it is left as it is") from None
    sync(path.parent)


def _replace(path: Path, fresh: Path) -> None:
    """Puts the folder ``fresh`` in the place of ``path``, and what stood there in the place of ``fresh``."""
    if _exchange(path, fresh):
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        os.rename(path, old / path.name)
        os.rename(fresh, path)
    finally:  # whatever came between the two, an interrupt too
        if not path.exists():
            os.rename(old / path.name, path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Makes two paths change places in one step, which Linux can on most file systems; whether it was done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, see renameat2(2)
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0)


@contextlib.contextmanager
def _readable_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise InputError(
                f"no space left on the disk while writing {path}; free some and run again (nothing was replaced)"
            ) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
