"""Backup and restore: the database and the artifacts, in one folder.

The database is dumped first, in one snapshot, and the artifacts are copied after it. Artifacts are written once and
never changed, so whatever the dump names is among those copied; what came later is copied too and does no harm.
"""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracking_server import artifacts, database
from tracking_server.errors import OperatorError, one_line
from tracking_server.settings import Stores

DATABASE = "database.sql.gz"
ARTIFACTS = "artifacts.tar"
MANIFEST = "manifest.json"

# Loading a dump begins with this: everything there goes, also what only a later version has.
_BEGIN = b"""
BEGIN;
SET LOCAL client_min_messages = warning;
DO $$ DECLARE thing text; BEGIN
  FOR thing IN
    SELECT format('TABLE %I', tablename) FROM pg_tables WHERE schemaname = current_schema()
    UNION ALL
    SELECT format('ROUTINE %s', oid::regprocedure) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
      AND oid NOT IN (SELECT objid FROM pg_depend WHERE deptype = 'e')  -- an extension's
  LOOP
    EXECUTE 'DROP ' || thing || ' CASCADE';
  END LOOP;
END $$;
"""
# Without this as the last line, because whoever sent it was interrupted, nothing has happened.
_END = b"COMMIT;\n"


def backup(stores: Stores, folder: Path, *, with_artifacts: bool = True) -> dict[str, Any]:
    """Copies everything to ``folder``, which is made, as a whole or not at all; the server may be running.

    Returns:
        What was copied, as the folder's manifest says it.

    Raises:
        OperatorError: If ``folder`` exists, there is nothing to copy, or a store cannot be read.
    """
    if folder.exists():
        raise _exists(folder)
    database.export(stores)
    with database.connect() as connection:
        revisions = database.revisions(connection)
    if not revisions:
        raise OperatorError("the database is empty; there is nothing to back up")
    with _new(folder) as partial:
        # The password comes from the environment. Owners and privileges are the other database's own.
        _run(
            "pg_dump", "--no-password", "--no-owner", "--no-privileges", "--compress=6", f"--file={partial / DATABASE}"
        )
        count = artifacts.save(stores, partial / ARTIFACTS) if with_artifacts else None
        manifest = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "mlflow": version("mlflow"),
            "revisions": revisions,
            "artifacts": count,
            "sha256": {path.name: _sha256(path) for path in sorted(partial.iterdir())},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for path in partial.iterdir():
            _sync(path)
    return manifest


def restore(stores: Stores, folder: Path, *, replace: bool = False) -> dict[str, Any]:
    """Puts a backup's artifacts and then, in one transaction, its database in place; the server must be stopped.

    Artifacts that came after the backup stay in S3, where nothing refers to them any more.

    Args:
        stores: Where to.
        folder: What :func:`backup` made; its checksums are looked at before anything is touched.
        replace: Whether a database that holds anything is replaced.

    Returns:
        The backup's manifest.

    Raises:
        OperatorError: If the backup is damaged, the database is in use, or holds something and ``replace`` is not set.
    """
    manifest = _read(folder)
    database.export(stores)
    with database.connect() as connection:
        database.require_alone(connection)
        if (there := database.tables(connection)) and not replace:
            raise OperatorError(f"the database holds {len(there)} tables; --replace puts the backup in their place")
    if manifest["artifacts"] is not None:
        artifacts.load(stores, folder / ARTIFACTS)
    _load(folder / DATABASE)
    return manifest


@contextlib.contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its place when the block is done; of two at a time the first one wins."""
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            with _locked(folder.parent):  # nobody takes the new one for a leftover before it is locked
                _remove_leftovers(folder)
                partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
                held.enter_context(_locked(partial))
            yield partial
            os.rename(partial, folder)  # never replaces a folder that holds anything, and a backup does
            _sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and error.filename2 is not None:
            raise _exists(folder) from error
        raise OperatorError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Removes what backups to ``folder`` left that were killed: what no process holds, where the file system tells."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}\.partial")  # what tempfile makes in _new
    for rest in folder.parent.iterdir():
        if name.fullmatch(rest.name):
            with _locked(rest, wait=False) as alone:
                if alone:
                    shutil.rmtree(rest, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Locks ``folder`` for other backups, as long as this process lives; yields whether it could be."""
    descriptor = None
    try:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError:  # another's; or a file system without locks; or gone meanwhile
            alone = False
        yield alone
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _exists(folder: Path) -> OperatorError:
    return OperatorError(f"{folder} exists; a backup never replaces another")


def _load(dump: Path) -> None:
    command = ["psql", "--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]
    with _spoken_for(command[0]), tempfile.TemporaryFile() as said:
        # A broken pipe: psql has ended before it read everything, and said why.
        with (
            contextlib.suppress(BrokenPipeError),
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as psql,
            gzip.open(dump) as text,
        ):
            assert psql.stdin  # noqa: S101 (a pipe, for the type checker)
            psql.stdin.write(_BEGIN)
            shutil.copyfileobj(text, psql.stdin)
            psql.stdin.write(_END)
        if psql.returncode:
            said.seek(0)
            reason = one_line(said.read().decode(errors="replace"))
            raise OperatorError(f"the database is as it was, for the dump cannot be loaded: {reason}")


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise OperatorError(f"{folder} is no backup: {one_line(error)}") from error
    if not isinstance(manifest, dict) or "artifacts" not in manifest or not isinstance(manifest.get("made"), str):
        raise OperatorError(f"{folder} is no backup: {MANIFEST} is not what a backup writes")
    files = {DATABASE} if manifest["artifacts"] is None else {DATABASE, ARTIFACTS}
    sums = manifest.get("sha256")
    if not isinstance(sums, dict) or sums.keys() != files:
        raise OperatorError(f"{folder} is no backup: {MANIFEST} must hold the sums of {' and '.join(sorted(files))}")
    try:
        changed = [name for name in sorted(files) if _sha256(folder / name) != sums[name]]
    except OSError as error:
        raise OperatorError(f"{folder} is damaged: {error.filename}: {error.strerror}") from error
    if changed:
        raise OperatorError(f"{folder} is damaged: {', '.join(changed)} is not what was written")
    return manifest


def _run(*command: str) -> None:
    with _spoken_for(command[0]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OperatorError(f"{command[0]} failed: {one_line(done.stderr)}")


@contextlib.contextmanager
def _spoken_for(program: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise OperatorError(f"{program} is not installed; it must be as new as the server or newer") from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
