"""Objects into files, checked; large ones in ranges that an interrupted download goes on from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modelcore.errors import InputError, first_line
from modelcore.progress import Progress
from modelcore.s3.checksums import known, known_from
from modelcore.s3.client import PART, DamagedError, Workers, client, error_code, one_line_errors

logger = logging.getLogger(__name__)

_UNFINISHED = ".part"
_PIECE = 1 << 18
# Codes of a server's answer to GET with If-Match; some say of a deleted object too that the condition is not met.
_REPLACED = {"PreconditionFailed", "412", "NoSuchKey", "404"}


@dataclass(frozen=True)
class Listed:
    """An object as a bucket's listing tells of it.

    Attributes:
        bucket: The bucket.
        key: The object's key.
        size: Bytes.
        etag: The ETag, which changes with the content.
    """

    bucket: str
    key: str
    size: int
    etag: str

    @property
    def address(self) -> str:
        """The object as ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"


def download(objects: dict[PurePosixPath, Listed], folder: Path) -> None:
    """Makes the files of ``folder`` those objects, and leaves alone what is there already.

    Every file is checked by what S3 knows of it (:mod:`modelcore.s3.checksums`). An object is read with ``If-Match``:
    one that is replaced meanwhile ends in an error, never in a file of two halves. What an interrupted call wrote is
    gone on with by the next.

    Args:
        objects: What to download, by the file's name relative to ``folder``.
        folder: An existing folder; a file that is none of the objects is removed.

    Raises:
        InputError: If a file would have to be a folder too, or content arrives damaged time after time.
    """
    for name, each in objects.items():
        if not objects.keys().isdisjoint(name.parents):
            raise InputError(f"{each.address}: another key is its folder here, which no file system has; rename one")
    _remove_others(
        folder, {folder / name for name in objects} | {_part_file(folder, each) for each in objects.values()}
    )
    large = {name: each for name, each in objects.items() if each.size > PART}
    small = [name for name in objects if name not in large]
    total = sum(each.size for each in objects.values())
    with Workers() as workers, Progress("download", total, "byte") as progress:

        def fetch(name: PurePosixPath) -> int:
            with _one_line_errors(objects[name]):
                return _fetch_small(workers, objects[name], folder / name)

        for size in workers.map(fetch, small):
            progress.update(size)
        for name, each in large.items():
            with _one_line_errors(each):
                for size in _fetch_large(workers, each, folder / name, _part_file(folder, each)):
                    progress.update(size)


def _fetch_small(workers: Workers, listed: Listed, target: Path) -> int:
    """Downloads an object in one piece, unless the file is there; returns its size."""
    if _is_there(workers, listed, target):
        return listed.size

    from botocore.exceptions import FlexibleChecksumError

    def fetch() -> bytes:
        answer = client().get_object(Bucket=listed.bucket, Key=listed.key, IfMatch=listed.etag, ChecksumMode="ENABLED")
        try:
            content: bytes = answer["Body"].read()
        except FlexibleChecksumError as error:  # boto3 knows some of the sums too
            raise DamagedError(f"the object arrived damaged: {first_line(error)}") from error
        if fault := known_from(answer).fault(io.BytesIO(content)):
            raise DamagedError(f"the object arrived damaged: {fault}")
        return content

    content = workers.patiently(listed.address, fetch)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)  # half of it would be seen by its size
    return listed.size


def _fetch_large(workers: Workers, listed: Listed, target: Path, part_file: Path) -> Iterator[int]:
    """Downloads an object in ranges, from where ``part_file`` ends; yields the sizes of what is there."""
    if _is_there(workers, listed, target):
        yield listed.size
        return
    told = workers.patiently(listed.address, lambda: known(listed.bucket, listed.key))
    if told is None or told.etag != listed.etag:
        raise _replaced(listed)

    def fetch(start: int) -> bytearray:
        end = min(start + PART, listed.size)

        def request() -> bytearray:
            answer = client().get_object(
                Bucket=listed.bucket, Key=listed.key, IfMatch=listed.etag, Range=f"bytes={start}-{end - 1}"
            )
            content, filled = bytearray(end - start), 0
            while piece := answer["Body"].read(_PIECE):  # reading all at once would take the memory twice
                content[filled : filled + len(piece)] = piece
                filled += len(piece)
            if filled != end - start:
                raise DamagedError(f"{filled} bytes came where {end - start} were asked for")
            return content

        return workers.patiently(listed.address, request)

    target.parent.mkdir(parents=True, exist_ok=True)
    for last_try in (False, True):
        with open(part_file, "ab", buffering=0) as file:
            if file.tell() > listed.size:
                file.truncate(0)
            done = file.tell()
            if done:
                logger.info("download=%s goes on at byte %d of %d", listed.address, done, listed.size)
            yield done
            for content in workers.map(fetch, range(done, listed.size, PART)):
                file.write(content)
                yield len(content)
        with open(part_file, "rb") as content_file:
            fault = told.fault(content_file)
        if fault is None:
            if not told.checkable:
                logger.info(
                    "download=%s is known by its size alone: the server keeps no usable checksum", listed.address
                )
            part_file.replace(target)
            return
        part_file.unlink()
        if last_try:
            raise InputError(f"{listed.address}: the object arrived damaged twice: {fault}")
        logger.warning("%s: the object arrived damaged: %s; downloading it once more", listed.address, fault)
        yield -listed.size


def _is_there(workers: Workers, listed: Listed, target: Path) -> bool:
    """Whether an earlier call downloaded the object, and it is still the same."""
    if not target.is_file() or target.stat().st_size != listed.size:
        return False
    told = workers.patiently(listed.address, lambda: known(listed.bucket, listed.key))
    if told is None or told.etag != listed.etag or not told.checkable:
        return False
    with open(target, "rb") as file:
        return told.fault(file) is None


def _part_file(folder: Path, listed: Listed) -> Path:
    """Where the beginning of an object is kept; of a changed object it is another file."""
    name = hashlib.sha256(f"{listed.address}\0{listed.etag}".encode()).hexdigest()
    return folder / f".{name}{_UNFINISHED}"


@contextlib.contextmanager
def _one_line_errors(listed: Listed) -> Iterator[None]:
    """As that of the client; where the object is no longer what was listed, the line says what became of it."""
    with one_line_errors(listed.address):
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as error:
            if error_code(error) not in _REPLACED:
                raise
            raise _replaced(listed) from error


def _replaced(listed: Listed) -> InputError:
    if known(listed.bucket, listed.key) is None:
        return InputError(
            f"{listed.address}: the object was deleted while it was being read; run again to read what is there now"
        )
    return InputError(
        f"{listed.address}: the object changed while it was being read; run again to read it as it is now"
    )


def _remove_others(folder: Path, kept: Iterable[Path]) -> None:
    kept = set(kept)
    for path in folder.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # it holds something
            path.rmdir()
