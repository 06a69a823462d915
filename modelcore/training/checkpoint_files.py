"""The files of one checkpoint, on a file system or S3, each held against the manifest before it is used."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from modelcore import storage
from modelcore.files import file_digests

STATE = "state.json"
WEIGHTS = "model.safetensors"

INDEX = "index.json"
"""The file that a checkpoint has whose tensors lie in pieces: see :mod:`modelcore.training.sharded_storage`."""

NO_MANIFEST = f"{storage.MANIFEST} is missing"
"""What is wrong with a folder that is no checkpoint: one goes with its manifest first, and comes with it last."""


class DamagedError(Exception):
    """A file of a checkpoint is not what its manifest says; the message says how."""


class CheckpointFiles(Mapping[str, Path]):
    """A checkpoint's files by their names: all but the manifest. A file is read when it is asked for.

    Args:
        address: The checkpoint's folder, or its ``s3://`` address.
        fetched: Local folder for what comes from S3.

    Raises:
        DamagedError: If the manifest is missing, cannot be read, or lacks a file that every checkpoint has.
        InputError: If S3 refuses, or cannot be reached.
    """

    def __init__(self, address: str, fetched: Path) -> None:
        self._address, self._fetched = address, fetched
        self._checked: dict[str, Path] = {}
        path = self._fetch(storage.MANIFEST)
        if path is None:
            raise DamagedError(NO_MANIFEST)
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            self._expected = {str(name): (int(each["size"]), str(each["sha256"])) for name, each in manifest.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{storage.MANIFEST} cannot be read ({type(error).__name__})") from None
        for name in (STATE, INDEX if INDEX in self._expected else WEIGHTS):
            if name not in self._expected:
                raise DamagedError(f"{storage.MANIFEST} does not list {name}")

    def __contains__(self, name: object) -> bool:
        return name in self._expected

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._expected))

    def __len__(self) -> int:
        return len(self._expected)

    def __getitem__(self, name: str) -> Path:
        """The local path of a file, whose content is what the manifest says; errors as those of :meth:`check`."""
        self.check([name])
        return self._checked[name]

    def check(self, names: Iterable[str]) -> None:
        """Holds files against the manifest, several at once; none twice.

        Raises:
            DamagedError: Naming the first that is missing, or of another size or content.
            InputError: If S3 refuses, or cannot be reached.
        """
        found: dict[str, Path] = {}
        for name in names:
            if name in self._checked:
                continue
            path = self._fetch(name) if name in self._expected else None
            if path is None:
                raise DamagedError(f"{name} is missing")
            if (size := path.stat().st_size) != self._expected[name][0]:
                raise DamagedError(f"{name} has {size} bytes and should have {self._expected[name][0]}")
            found[name] = path
        try:
            digests = file_digests(list(found.values()))
        except OSError as error:
            raise DamagedError(f"{error.filename or 'a file'} cannot be read ({error.strerror})") from None
        for name, digest in zip(found, digests, strict=True):
            if digest != self._expected[name][1]:
                raise DamagedError(f"{name} does not have the SHA-256 sum in {storage.MANIFEST}")
        self._checked |= found

    def _fetch(self, name: str) -> Path | None:
        address = f"{self._address}/{name}"
        if not storage.is_remote(address):
            return Path(address) if Path(address).is_file() else None
        return storage.localize(address, self._fetched / f"{name}.d") if storage.exists(address) else None


def find_fault(path: Path) -> str | None:
    """What is wrong with the files of the checkpoint in the folder ``path``, or None if nothing is."""
    try:
        files = CheckpointFiles(str(path), path)
        files.check(files)
    except DamagedError as error:
        return str(error)
    return None


@contextlib.contextmanager
def fetched(scratch: Path, name: str) -> Iterator[Path]:
    """A folder in ``scratch`` for files from S3, removed when the block ends; it is made when something comes.

    What a killed process leaves of it, :func:`modelcore.atomic.remove_leftovers` finds by ``name``.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
