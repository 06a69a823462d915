"""Checkpoints kept at another address, for machines whose disk does not outlive them."""

from __future__ import annotations

import logging
from pathlib import Path

from modelcore import storage
from modelcore.training.state import CHECKPOINT_NAME, find_fault

logger = logging.getLogger(__name__)


def push_checkpoint(path: Path, uri: str, keep: int) -> None:
    """Copies the checkpoint folder ``path`` under ``uri`` and removes the oldest ones there beyond ``keep``.

    Raises:
        InputError: If the address cannot be written.
    """
    address = f"{uri.rstrip('/')}/{path.name}"
    # A run reaches a step twice only if its first checkpoint was damaged; the two must not be mixed.
    storage.delete_directory(address)
    storage.upload_directory(path, address)
    for name in _names(uri)[keep:]:
        storage.delete_directory(f"{uri.rstrip('/')}/{name}")


def pull_checkpoint(uri: str, folder: Path) -> None:
    """Copies the newest complete checkpoint under ``uri`` into ``folder``, if it is newer than what is there.

    Incomplete ones are passed over with a warning.

    Raises:
        InputError: If the address cannot be read.
    """
    for name in _names(uri):
        path = folder / name
        if path.is_dir() and find_fault(path) is None:
            return
        storage.download_directory(f"{uri.rstrip('/')}/{name}", path)
        fault = find_fault(path)
        if fault is None:
            return
        logger.warning("checkpoint %s/%s is passed over: %s", uri.rstrip("/"), name, fault)


def _names(uri: str) -> list[str]:
    """Names of the checkpoints under ``uri``, newest first."""
    return sorted(filter(CHECKPOINT_NAME.fullmatch, storage.list_children(uri)), reverse=True)
