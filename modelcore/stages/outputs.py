"""Where stages write: a path that holds anything a stage did not write is left alone, and found out before the work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from modelcore.errors import InputError

_HEAD_BYTES = 1024


@dataclass(frozen=True)
class Output:
    """A kind of output, and how one that was written before is known again.

    Attributes:
        kind: What it is, in words, for example ``token folder``.
        marker: The file of the folder that tells; empty where the output is a file itself.
        mark: What stands near the start of that file; empty where its name tells enough.
        beside: Names, or patterns of them, of what else may lie in the folder.
    """

    kind: str
    marker: str = ""
    mark: str = ""
    beside: tuple[str, ...] = ()

    def check(self, path: Path) -> None:
        """Makes sure that the output can be written to ``path``, and that nothing else would be lost by it.

        Raises:
            InputError: If ``path`` holds anything but nothing, or an earlier output of this kind; or if nothing can be
                written there.
        """
        path = Path(os.path.realpath(path))  # a link's target is what is replaced
        check_place(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        if fault := self._fault(path):
            raise InputError(f"{path} exists and is no {self.kind} ({fault}); it is left as it is, name another place")

    def _fault(self, path: Path) -> str | None:
        """What tells that ``path`` is not, or not only, an output of this kind; or None."""
        if path.is_dir() != bool(self.marker):
            return "it is a folder" if path.is_dir() else "it is a file"
        names = sorted(entry.name for entry in path.iterdir()) if self.marker else []
        others = [name for name in names if not any(fnmatch(name, known) for known in (self.marker, *self.beside))]
        if others:
            return f"it holds {', '.join(others[:3])}{' …' if len(others) > 3 else ''}"
        file = path / self.marker
        if not file.is_file():
            return f"it has no {self.marker}"
        with open(file, "rb") as handle:
            if self.mark.encode() not in handle.read(_HEAD_BYTES):
                return f"{file.name if self.marker else 'its content'} is not what such a one begins with"
        return None


def check_place(path: Path) -> None:
    """Makes sure that something can be put in the place of ``path`` in one step.

    Raises:
        InputError: If it is a mount point or the working folder, lies under a file, or may not be written.
    """
    path = Path(os.path.realpath(path))
    if os.path.ismount(path) or Path.cwd().is_relative_to(path):
        what = "a mount point" if os.path.ismount(path) else "the folder you work in, or one above it"
        raise InputError(f"{path} is {what}, which cannot be replaced in one step; name a folder inside it")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Makes sure that something can be made at ``path``, as far as can be told without making it.

    Raises:
        InputError: If it lies under a file, or in a folder that may not be written.
    """
    path = Path(os.path.realpath(path))
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{path} cannot be written: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write in {above}")
