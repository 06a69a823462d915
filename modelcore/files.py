"""Reading what is known by its content: JSON objects, and SHA-256 sums of files and folders."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from modelcore.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file ``path``.

    Raises:
        InputError: If the file is missing, cannot be read, or holds no JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}; an object is needed")
    return value


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; the file is read piece by piece.

    Raises:
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(paths: Sequence[Path]) -> list[str]:
    """What :func:`file_digest` gives of each, made at the same time on as many cores as there are.

    Raises:
        OSError: If one cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib holds no lock while it adds up
        return list(pool.map(file_digest, paths))


def content_digest(path: Path) -> str:
    """SHA-256 over a file's bytes, or over a folder's files and their relative names, in hexadecimal."""
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_file():
        files = [("", path)]
    else:
        files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    for (name, _), each in zip(files, file_digests([file for _, file in files]), strict=True):
        digest.update(f"{name}\0{each}\0".encode(errors="surrogateescape"))  # any bytes may be a name
    return digest.hexdigest()
