"""Checkpoints kept at another address, for machines whose disk does not outlive them."""

from __future__ import annotations

import logging
from pathlib import Path

from modelcore import storage
from modelcore.errors import InputError
from modelcore.training.checkpoint_files import NO_MANIFEST, find_fault
from modelcore.training.checkpoint_list import (
    checkpoint_names,
    find_complete,
    latest_checkpoint,
    remove_older,
    warn_of_damage,
)

logger = logging.getLogger(__name__)


class Mirror:
    """Copies of a run's checkpoints at an address that may be out of reach for a while.

    A copy that cannot be made is told in one line, and training goes on: the checkpoint is on this machine, and the
    next one's copy makes up for it. The last one's must succeed.

    Args:
        uri: Where the copies go.
        keep: Number of newest copies to keep.
    """

    def __init__(self, uri: str, keep: int) -> None:
        self.uri, self.keep = uri, keep
        self._newest: Path | None = None  # that was copied

    def start(self, folder: Path) -> None:
        """Brings the newest copy into ``folder``, if it is newer than what is there.

        Raises:
            InputError: If the address cannot be read or written: better now than after hours.
        """
        if storage.is_remote(self.uri):
            storage.check_writable(self.uri)
        pull_checkpoint(self.uri, folder)

    def save(self, path: Path) -> None:
        """Copies the checkpoint folder ``path``, or warns that it could not."""
        try:
            push_checkpoint(path, self.uri, self.keep)
        except InputError as error:
            logger.warning("checkpoint %s is on this machine alone: %s; training goes on", path.name, error)
        else:
            self._newest = path

    def finish(self, folder: Path) -> None:
        """Copies the newest checkpoint in ``folder``, if that was not done.

        Raises:
            InputError: If it cannot be copied. Everything is still on this machine.
        """
        newest = latest_checkpoint(folder)
        if newest is None or newest == self._newest:
            return
        try:
            push_checkpoint(newest, self.uri, self.keep)
        except InputError as error:
            raise InputError(
                f"training is complete, but its last checkpoint is only in {newest}: {error}; "
                "start again with the same settings to copy it, nothing is trained twice"
            ) from error


def push_checkpoint(path: Path, uri: str, keep: int) -> None:
    """Copies the checkpoint folder ``path`` under ``uri`` and removes the oldest ones there beyond ``keep``.

    Raises:
        InputError: If the address cannot be written.
    """
    address = f"{uri.rstrip('/')}/{path.name}"
    # A run reaches a step twice only if its first checkpoint was damaged; an interrupted copy is gone on with.
    if not set(storage.list_children(address)) <= {file.name for file in path.iterdir()}:
        storage.delete_directory(address)
    storage.upload_directory(path, address)
    remove_older(uri.rstrip("/"), path.name, keep)


def push_newest(folder: Path, uri: str, keep: int) -> None:
    """Copies the newest complete checkpoint in ``folder`` under ``uri``, if it is newer than what is there.

    For a run that kept its checkpoints here, of which ``uri`` has copies, and from now on keeps them there alone.

    Raises:
        InputError: If the address cannot be read or written.
    """
    uri = uri.rstrip("/")
    there = (name for name in checkpoint_names(uri) if storage.MANIFEST in storage.list_children(f"{uri}/{name}"))
    newest_there = next(there, "")
    if all(name <= newest_there for name in checkpoint_names(folder)):
        return
    newest, _ = find_complete(folder)
    if newest is not None and newest.name > newest_there:
        logger.info("checkpoint %s was on this machine alone: it is copied to %s", newest.name, uri)
        push_checkpoint(newest, uri, keep)


def pull_checkpoint(uri: str, folder: Path) -> None:
    """Copies the newest complete checkpoint under ``uri`` into ``folder``, if it is newer than what is there.

    Incomplete ones, and what is named like a checkpoint and is none, are passed over with a warning.

    Raises:
        InputError: If the address cannot be read.
    """
    newest, _ = find_complete(folder)
    uri = uri.rstrip("/")
    for name in checkpoint_names(uri):
        if newest is not None and name <= newest.name:
            return
        fault: str | None = NO_MANIFEST
        if storage.MANIFEST in storage.list_children(f"{uri}/{name}"):
            storage.download_directory(f"{uri}/{name}", folder / name)
            fault = find_fault(folder / name)
        if fault is None:
            return
        warn_of_damage(uri, name, fault)
