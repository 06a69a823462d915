"""Files into objects, checked; large ones in parts that an interrupted upload goes on from."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modelcore.errors import InputError
from modelcore.files import file_digest
from modelcore.progress import Progress
from modelcore.s3.checksums import METADATA_KEY, known
from modelcore.s3.client import PART, DamagedError, Workers, client, error_code, one_line_errors

logger = logging.getLogger(__name__)

_MOST_PARTS = 10_000  # that S3 takes


@dataclass(frozen=True)
class Local:
    """A file, and the object that it is to be.

    Attributes:
        path: The file.
        bucket: The object's bucket.
        key: The object's key.
        size: Bytes.
        modified: When it was written, nanoseconds.
        sha256: SHA-256 sum in hexadecimal.
    """

    path: Path
    bucket: str
    key: str
    size: int
    modified: int
    sha256: str

    @classmethod
    def read(cls, path: Path, bucket: str, key: str) -> Local:
        """Reads the file once for its sum."""
        stat = path.stat()
        return cls(path, bucket, key, stat.st_size, stat.st_mtime_ns, file_digest(path))

    def check_unchanged(self) -> None:
        """Makes sure that the file is still the one that was read.

        Raises:
            InputError: If it is not.
        """
        stat = self.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.modified):
            raise InputError(f"{self.path} changed while it was being uploaded; run again")

    @property
    def address(self) -> str:
        """The object as ``s3://bucket/key``."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def part_size(self) -> int:
        """Bytes of a part: more than usual where there would be too many of them."""
        return max(PART, math.ceil(self.size / _MOST_PARTS))

    def is_there(self) -> bool:
        """Whether the object exists already, with this content."""
        told = known(self.bucket, self.key)
        if told is None or told.size != self.size:
            return False
        if told.sha256:
            return told.sha256 == self.sha256
        with open(self.path, "rb") as file:
            return told.checkable and told.fault(file) is None


def upload(files: list[tuple[Path, str]], bucket: str, last: tuple[Path, str] | None = None) -> None:
    """Makes each file the object of its key, unless it is there already.

    Every request carries the MD5 sum of its content, which every server checks, and its SHA-256 sum, which those check
    that know additional checksums; each object keeps the SHA-256 sum of the whole as metadata. The parts that an
    interrupted upload of the same content left behind are not sent again.

    Args:
        files: Path and key of each.
        bucket: Where they go.
        last: A file to be sent when all others are there; an object of its key is deleted before anything is sent,
            unless it has the file's content.

    Raises:
        InputError: If S3 refuses, or cannot be reached.
    """
    ends = [last] if last is not None else []
    total = sum(path.stat().st_size for path, _ in (*files, *ends))
    with Workers() as workers, Progress("upload", total, "byte") as progress:

        def send(item: tuple[Path, str]) -> tuple[Local, bool]:
            with one_line_errors(f"s3://{bucket}/{item[1]}"):
                file = Local.read(item[0], bucket, item[1])
                there = workers.patiently(file.address, file.is_there)
                if not there and file.size <= PART:
                    _send_small(workers, file)
                return file, there

        for path, key in ends:
            with one_line_errors(f"s3://{bucket}/{key}"):
                file = Local.read(path, bucket, key)
                if not workers.patiently(file.address, file.is_there):
                    workers.patiently(file.address, partial(client().delete_object, Bucket=bucket, Key=key))
        for group in (files, ends):
            for file, there in workers.map(send, group):
                if there or file.size <= PART:
                    progress.update(file.size)
                    continue
                with one_line_errors(file.address):
                    for size in _send_large(workers, file):
                        progress.update(size)


def claim(path: Path, bucket: str, key: str) -> bool:
    """Makes a small file the object of its key unless there is one; whether the object has the file's content now.

    The server decides between two that come at once (``If-None-Match``, see
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). One that knows no such condition
    lets the last one win: look again with :meth:`Local.is_there` after the work.
    """
    from botocore.exceptions import ClientError

    file = Local.read(path, bucket, key)
    with Workers() as workers:
        if workers.patiently(file.address, partial(known, bucket, key)) is None:
            try:
                _send_small(workers, file, IfNoneMatch="*")
            except ClientError as error:
                if error_code(error) in ("NotImplemented", "501"):
                    _send_small(workers, file)
                elif error_code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                    raise
        return workers.patiently(file.address, file.is_there)


def _send_small(workers: Workers, file: Local, **condition: str) -> None:
    content = file.path.read_bytes()
    file.check_unchanged()
    request = {"Bucket": file.bucket, "Key": file.key, "Body": content, "Metadata": {METADATA_KEY: file.sha256}}
    workers.patiently(file.address, lambda: client().put_object(**request, **_sums(content), **condition))


def _send_large(workers: Workers, file: Local) -> Iterator[int]:
    """Uploads a file in parts, yields their sizes, and looks at what the server made of them."""
    for last_try in (False, True):
        upload, there = (None, {}) if last_try else workers.patiently(file.address, lambda: _unfinished(file))
        if upload is None:
            algorithm = {"ChecksumAlgorithm": "SHA256"} if _additional_checksums() else {}
            request = {"Bucket": file.bucket, "Key": file.key, "Metadata": {METADATA_KEY: file.sha256}, **algorithm}
            upload = workers.patiently(file.address, partial(client().create_multipart_upload, **request))["UploadId"]
        elif there:
            logger.info("upload=%s goes on: %d parts are there", file.address, len(there))
        parts = []
        send = _PartSender(workers, file, upload, there)
        for part, md5, size in workers.map(send, range(1, math.ceil(file.size / file.part_size) + 1)):
            parts.append((part, md5))
            yield size
        file.check_unchanged()
        if fault := workers.patiently(file.address, partial(_complete, file, upload, parts)):
            if last_try:
                raise DamagedError(f"the server holds something else than was sent: {fault}")
            # The unfinished upload was of a file that began alike, and has that file's sum as metadata.
            logger.warning("%s: the server holds something else: %s; uploading it once more", file.address, fault)
            yield -file.size
            continue
        return


class _PartSender:
    """Sends the part of a number, unless the server has it."""

    def __init__(self, workers: Workers, file: Local, upload: str, there: dict[int, str]) -> None:
        self._workers, self._file, self._upload, self._there = workers, file, upload, there

    def __call__(self, number: int) -> tuple[dict[str, Any], bytes, int]:
        """What completes the upload, the part's MD5 sum, and its size."""
        file = self._file
        with open(file.path, "rb") as opened:
            content = os.pread(opened.fileno(), file.part_size, (number - 1) * file.part_size)
        sums, md5 = _sums(content), _md5(content)
        etag = self._there.get(number)
        if etag is None or etag.strip('"') != md5.hex():
            request = {"Bucket": file.bucket, "Key": file.key, "UploadId": self._upload, "PartNumber": number}
            answer = self._workers.patiently(
                f"{file.address} part {number}", lambda: client().upload_part(**request, Body=content, **sums)
            )
            etag = answer["ETag"]
        return {"PartNumber": number, "ETag": etag} | _additional(sums), md5, len(content)


def _complete(file: Local, upload: str, parts: list[tuple[dict[str, Any], bytes]]) -> str | None:
    """Makes an object of the parts; returns what shows that it is not the file, or None."""
    from botocore.exceptions import ClientError

    try:
        client().complete_multipart_upload(
            Bucket=file.bucket, Key=file.key, UploadId=upload, MultipartUpload={"Parts": [part for part, _ in parts]}
        )
    except ClientError as error:  # an answer that got lost: the object is there
        if error_code(error) != "NoSuchUpload":
            raise
    told = known(file.bucket, file.key)
    if told is None:
        return "there is no such object"
    if told.size != file.size:
        return f"it has {told.size} bytes and should have {file.size}"
    if told.sha256 not in (None, file.sha256):
        return f"it is said to have the SHA-256 sum {told.sha256}"
    etag = f"{_md5(b''.join(md5 for _, md5 in parts)).hex()}-{len(parts)}"
    if told.etag_is_md5 and "-" in told.etag and told.etag.strip('"') != etag:
        return f"its ETag is {told.etag} and should be {etag}"
    return None


def _unfinished(file: Local) -> tuple[str | None, dict[int, str]]:
    """An upload of the object that was interrupted, with the ETags of its parts by number; others are ended.

    Who may not list uploads begins anew.
    """
    from botocore.exceptions import ClientError

    try:
        found = [
            entry
            for page in client().get_paginator("list_multipart_uploads").paginate(Bucket=file.bucket, Prefix=file.key)
            for entry in page.get("Uploads", [])
            if entry["Key"] == file.key
        ]
        if not found:
            return None, {}
        *others, newest = sorted((entry["Initiated"], entry["UploadId"]) for entry in found)
        for _, upload in others:
            client().abort_multipart_upload(Bucket=file.bucket, Key=file.key, UploadId=upload)
        pages = client().get_paginator("list_parts").paginate(Bucket=file.bucket, Key=file.key, UploadId=newest[1])
        return newest[1], {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", [])}
    except ClientError as error:
        if error_code(error) not in ("AccessDenied", "NoSuchUpload", "NotImplemented", "MethodNotAllowed"):
            raise
        return None, {}


def _sums(content: bytes) -> dict[str, str]:
    """The sums that a request carries, in base64."""
    sums = {"ContentMD5": _base64(_md5(content))}
    if _additional_checksums():
        sums["ChecksumSHA256"] = _base64(hashlib.sha256(content).digest())
    return sums


def _additional(sums: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in sums.items() if name != "ContentMD5"}


def _additional_checksums() -> bool:
    """Whether to send SHA-256 sums: always but where ``AWS_REQUEST_CHECKSUM_CALCULATION`` is ``when_required``."""
    return bool(client().meta.config.request_checksum_calculation != "when_required")


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
