"""A journal of what is to be tracked: on disk first, delivered later, in order, each entry once or harmlessly again.

A folder with ``journal.jsonl`` and the files that entries speak of. Lines are only ever appended:

* the first says what the journal is for: ``{"tracking_uri": "https://mlflow.example.org"}``
* an entry: ``{"n": 7, "run": "5f0c…", "at": 1767225600000, "method": "log_metrics", "arguments": {…}}``; ``run`` is an
  id made here, and ``at`` the time of the call, milliseconds of Unix time
* what was delivered: ``{"delivered": 7}``; of a run's first entry with the id that the server gave the run,
  ``{"delivered": 1, "run": "5f0c…", "run_id": "…"}``

A line is one write: what a killed process leaves is whole lines and perhaps a torn last one, which is cut off when the
journal is opened again. Only a machine that goes down can lose more; :meth:`Journal.sync` is for that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelcore.atomic import sync
from modelcore.errors import InputError, without_password

_FILE = "journal.jsonl"
_FILES = "files"
_KEPT = re.compile(rf"{_FILES}/[0-9a-f]{{32}}/[^/]+")  # what `Journal.keep` names a copy
_FORMS = (  # of a line: its fields and their types
    {"tracking_uri": str},
    {"n": int, "run": str, "at": int, "method": str, "arguments": dict},
    {"delivered": int},
    {"delivered": int, "run": str, "run_id": str},
)


class InUseError(InputError):
    """Another process, or another part of this one, has the journal open."""


@dataclass(frozen=True)
class Entry:
    """One call to be made.

    Attributes:
        n: Its number in the journal, from 1.
        run: The run's id in the journal.
        at: When the call was made, milliseconds of Unix time.
        method: What is called.
        arguments: With what: JSON.
    """

    n: int
    run: str
    at: int
    method: str
    arguments: dict[str, Any]


class Journal:
    """The journal in a folder: made there, or taken up where its last writer left it.

    One process at a time; its threads may append while one of them reads.

    Args:
        folder: The journal's folder.
        tracking_uri: The server it is for; None takes what the journal says, which must then exist.

    Attributes:
        tracking_uri: The server it is for, without a user's name and password.
        run_ids: The server's ids of runs, by the journal's.

    Raises:
        InUseError: If another process has it open.
        InputError: If it is for another server, there is none, or what is there is none of ours.
    """

    def __init__(self, folder: Path, tracking_uri: str | None = None) -> None:
        self.folder = Path(folder)
        self.run_ids: dict[str, str] = {}
        self._lock = threading.Lock()
        self._last = self._delivered = 0  # numbers of entries
        self._size = self._position = 0  # bytes: of the file, and of what has been delivered at its head
        self._path = self.folder / _FILE
        if tracking_uri is None and not self._path.is_file():
            raise InputError(f"{folder} holds no tracking that waits to be delivered")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file).st_nlink == 0:  # its last process removed it between the two calls above
                raise BlockingIOError
            head = self._read()
            if head is None:
                if tracking_uri is None:
                    raise InputError(f"{self._path} is empty; it is left alone")
                head = without_password(tracking_uri)  # a journal holds no secret
                self._write({"tracking_uri": head})
            elif tracking_uri is not None and head != without_password(tracking_uri):
                raise InputError(
                    f"{folder} holds {self.waiting} tracked calls for {head}, and MLFLOW_TRACKING_URI is "
                    f"{without_password(tracking_uri)} now; deliver them to where they belong, with "
                    f"MLFLOW_TRACKING_URI={head} modelcore deliver-tracking {folder}, or delete the folder"
                )
        except BlockingIOError:
            os.close(self._file)
            raise InUseError(f"{folder} is in use by another process, which tracks or delivers") from None
        except BaseException:
            os.close(self._file)
            raise
        self.tracking_uri = head

    @property
    def waiting(self) -> int:
        """How many entries have not been delivered."""
        return self._last - self._delivered

    @property
    def last(self) -> int:
        """The number of the newest entry; 0 where there is none."""
        return self._last

    @property
    def delivered(self) -> int:
        """The number of the newest entry that was delivered."""
        return self._delivered

    def append(self, run: str, method: str, arguments: Mapping[str, Any]) -> int:
        """Writes an entry, with the time; returns its number.

        Raises:
            OSError: If the disk is full; the journal is as it was before.
        """
        with self._lock:
            entry = {"n": self._last + 1, "run": run, "at": int(time.time() * 1000), "method": method}
            self._write(entry | {"arguments": arguments})
            self._last += 1
            return self._last

    def keep(self, path: Path) -> str:
        """Copies a file or a folder into the journal; returns its name there, for an entry's arguments.

        Raises:
            OSError: If the disk is full; nothing of the copy is left.
        """
        place = self.folder / _FILES / uuid.uuid4().hex
        try:
            place.mkdir(parents=True)
            copy = place / Path(path).name
            if Path(path).is_dir():
                shutil.copytree(path, copy)
            else:
                shutil.copyfile(path, copy)
            for item in (*copy.rglob("*"), copy, place):
                sync(item)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return str(copy.relative_to(self.folder))

    def next(self, most: int) -> list[Entry]:
        """The first entries that have not been delivered, in order, at most ``most`` of them."""
        with self._lock:
            end = self._size
        entries: list[Entry] = []
        with open(self._path, "rb") as lines:
            lines.seek(self._position)
            position = self._position
            while position < end and len(entries) < most:
                line = lines.readline()
                position += len(line)
                value = _parsed(line)
                if value is not None and "method" in value and value["n"] > self._delivered:
                    entries.append(Entry(**value))
                elif not entries:
                    self._position = position  # it will not be looked at again
        return entries

    def mark(self, entries: list[Entry], run_id: str | None = None) -> None:
        """Writes that ``entries``, the first that waited, are delivered, and the id of the run that the first began.

        On a full disk it is only remembered: delivering them again, after a crash, does no harm.
        """
        mark: dict[str, Any] = {"delivered": entries[-1].n}
        if run_id is not None:
            self.run_ids[entries[0].run] = run_id
            mark |= {"run": entries[0].run, "run_id": run_id}
        with self._lock:
            self._delivered = entries[-1].n
            with contextlib.suppress(OSError):
                self._write(mark)
        for entry in entries:
            if entry.method == "log_path" and (kept := self.kept(entry.arguments)) is not None:
                shutil.rmtree(kept.parent, ignore_errors=True)

    def kept(self, arguments: Mapping[str, Any]) -> Path | None:
        """The copy that the arguments of an entry speak of; None where that is no copy that :meth:`keep` made.

        Whoever can write to a journal must not have other files sent away, or deleted.
        """
        name = arguments.get("path")
        if not isinstance(name, str) or not _KEPT.fullmatch(name) or name.endswith(("/.", "/..")):
            return None
        copy = self.folder / name
        own = Path(os.path.realpath(self.folder)) / Path(name).parent
        return copy if Path(os.path.realpath(copy.parent)) == own and not copy.is_symlink() else None

    def sync(self) -> None:
        """Makes what was written survive a machine that goes down."""
        os.fsync(self._file)

    def discard(self) -> None:
        """Removes the journal and the copies it made, and its folder unless that holds anything else."""
        self._path.unlink(missing_ok=True)
        for name in (self.folder / _FILES).glob("*"):
            if re.fullmatch("[0-9a-f]{32}", name.name) and not name.is_symlink():
                shutil.rmtree(name, ignore_errors=True)
        for folder in (self.folder / _FILES, self.folder):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def close(self) -> None:
        """Closes the journal: its folder is removed if nothing in it waits, and can be opened again otherwise."""
        with self._lock:
            if not self.waiting:
                self.discard()
            else:
                self.sync()
            os.close(self._file)
            self._file = -1

    def _read(self) -> str | None:
        """Reads all lines and cuts off what was torn at the end; returns the server that the journal is for."""
        head: str | None = None
        size = 0
        with open(self._path, "rb") as lines:
            for line in lines:
                size += len(line)
                value = _parsed(line)
                if value is None:
                    continue
                if not _is_ours(value) or ("tracking_uri" in value) != (head is None):
                    raise InputError(
                        f"{self._path} is no journal of tracked calls, or damaged: {line[:80]!r}; it is left alone"
                    )
                self._size = size
                if "method" in value:
                    self._last = value["n"]
                elif "delivered" in value:
                    self._delivered = value["delivered"]
                    self._last = max(self._last, self._delivered)
                    if "run_id" in value:
                        self.run_ids[value["run"]] = value["run_id"]
                elif "tracking_uri" in value:
                    head = value["tracking_uri"]
        if head is None and size:
            raise InputError(f"{self._path} is no journal of tracked calls; it is left alone")
        os.ftruncate(self._file, self._size)
        return head

    def _write(self, value: Mapping[str, Any]) -> None:
        if self._file < 0:
            raise ValueError(f"the journal {self.folder} is closed")  # its descriptor may be another file's by now
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
        except BaseException:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)


def exists(folder: Path) -> bool:
    """Whether there is a journal in ``folder``."""
    return (Path(folder) / _FILE).is_file()


def _is_ours(value: Mapping[str, Any]) -> bool:
    """Whether an object is a line that a journal writes."""
    return any(
        value.keys() == form.keys() and all(type(value[name]) is kind for name, kind in form.items()) for form in _FORMS
    )


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object on a line; None where the line was torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
