"""A cache of stage outputs, keyed by the content of what a stage reads.

It is used only by stages that are pure: same inputs, parameters and code, same output. The key covers the bytes
of the inputs (never their names or times), the parameters, and the source of modelcore; so a changed corpus at
an old path is a miss. Entries are hard links where the file system allows: files are never modified in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import modelcore
from modelcore.atomic import atomic_directory, write_json
from modelcore.files import content_digest

# The libraries whose version changes what a pure stage writes.
_LIBRARIES = ("sentencepiece", "tokenizers", "great-expectations", "pandas", "pyarrow", "numpy")


class StageCache:
    """Outputs kept under ``root``, one folder an entry."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    @classmethod
    def from_environment(cls) -> StageCache | None:
        """The cache at ``MODELCORE_CACHE``, or None where that is not set.

        Where results are cached never changes them, which is why this may be an environment variable.
        """
        root = os.environ.get("MODELCORE_CACHE")
        return cls(Path(root)) if root else None

    def key(self, stage: str, parameters: dict[str, Any], inputs: list[Path]) -> str:
        """The entry's name, a SHA-256 in hexadecimal."""
        fields = {
            "stage": stage,
            "parameters": parameters,
            "inputs": [content_digest(path) for path in inputs],
            "code": _code_digest(),
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def restore(self, key: str, outputs: dict[str, Path]) -> dict[str, Any] | None:
        """Puts an entry's outputs in place and returns the note kept with it, or None if there is no entry."""
        entry = self.root / key
        if not (entry / "note.json").is_file():
            return None
        for name, path in outputs.items():
            source = entry / name
            if source.is_dir():
                with atomic_directory(path) as fresh:
                    _link_tree(source, fresh)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                _link(str(source), str(path))
        note: dict[str, Any] = json.loads((entry / "note.json").read_text(encoding="utf-8"))
        return note

    def keep(self, key: str, outputs: dict[str, Path], note: dict[str, Any]) -> None:
        """Stores outputs and a note of plain JSON values under ``key``."""
        with atomic_directory(self.root / key) as entry:
            for name, path in outputs.items():
                if path.is_dir():
                    _link_tree(path, entry / name)
                else:
                    _link(str(path), str(entry / name))
            write_json(entry / "note.json", note)


@cache
def _code_digest() -> str:
    source = Path(modelcore.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(source.rglob("*.py")):
        digest.update(file.relative_to(source).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    for library in _LIBRARIES:
        try:
            digest.update(f"{library}={version(library)}\0".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()


def _link_tree(source: Path, destination: Path) -> None:
    shutil.copytree(source, destination, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, destination)
