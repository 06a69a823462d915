"""The files of a checkpoint on a file system or S3, each held against the manifest before it is used."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from modelcore import storage
from modelcore.files import file_digest

INDEX = "index.json"
"""The file that a checkpoint has whose tensors lie in pieces: see :mod:`modelcore.training.sharded_storage`."""


class DamagedError(Exception):
    """A file of a checkpoint is not what its manifest says; the message says how."""


class CheckpointFiles(Mapping[str, Path]):
    """A checkpoint's files by their names: all but the manifest.

    Args:
        address: The checkpoint's folder, or its ``s3://`` address.
        fetched: Local folder for what comes from S3.

    Raises:
        DamagedError: If the manifest is missing, or cannot be read.
        InputError: If S3 refuses, or cannot be reached.
    """

    NO_MANIFEST = "manifest.json is missing"

    def __init__(self, address: str, fetched: Path) -> None:
        self._address, self._fetched = address, fetched
        self._checked: dict[str, Path] = {}
        path = self._fetch(storage.MANIFEST)
        if path is None:
            raise DamagedError(self.NO_MANIFEST)
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            self._expected = {str(name): (int(each["size"]), str(each["sha256"])) for name, each in manifest.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"manifest.json cannot be read ({type(error).__name__})") from None

    def __contains__(self, name: object) -> bool:
        return name in self._expected

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._expected))

    def __len__(self) -> int:
        return len(self._expected)

    def __getitem__(self, name: str) -> Path:
        """The local path of a file, whose content is what the manifest says.

        Raises:
            DamagedError: If it is not.
            InputError: If S3 refuses, or cannot be reached.
        """
        if name not in self._checked:
            path = self._fetch(name) if name in self._expected else None
            if path is None:
                raise DamagedError(f"{name} is missing")
            size, sha256 = self._expected[name]
            if path.stat().st_size != size:
                raise DamagedError(f"{name} has {path.stat().st_size} bytes and should have {size}")
            if file_digest(path) != sha256:
                raise DamagedError(f"{name} does not have the SHA-256 sum in manifest.json")
            self._checked[name] = path
        return self._checked[name]

    def _fetch(self, name: str) -> Path | None:
        address = f"{self._address}/{name}"
        if not storage.is_remote(address):
            return Path(address) if Path(address).is_file() else None
        return storage.localize(address, self._fetched / f"{name}.d") if storage.exists(address) else None


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
