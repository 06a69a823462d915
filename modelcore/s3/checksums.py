"""What S3 knows of an object's content, and whether bytes on this machine are that content.

The first of these that an object has decides: the SHA-256 sum that this library leaves with what it uploads; the sum
that the server keeps of the whole object (SHA-256, SHA-1 or CRC-32,
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html); and the ETag, which is the MD5
sum of the content or, of an object uploaded in parts, the MD5 sum of the parts' MD5 sums, unless a key of KMS or of
the customer's own encrypts it. An object that has none of them is known by its size alone.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from modelcore.s3.client import client, error_code

METADATA_KEY = "modelcore-sha256"  # ours alone: others write sums of other things, in other ways, under "sha256"
_CHUNK = 1 << 20
_ETAG = re.compile(r'"?([0-9a-f]{32})(?:-(\d+))?"?')


class Crc32:
    """CRC-32 with the methods of hashlib's sums."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        """Takes ``data`` in."""
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        """The sum, 4 bytes."""
        return self._value.to_bytes(4, "big")


_SUMS: dict[str, Any] = {"ChecksumSHA256": hashlib.sha256, "ChecksumSHA1": hashlib.sha1, "ChecksumCRC32": Crc32}


@dataclass(frozen=True)
class Known:
    """What a server tells of an object.

    Attributes:
        size: Bytes.
        etag: The ETag as the server writes it.
        sha256: The SHA-256 sum in hexadecimal that was left with the object, or None.
        sums: The server's own sums of the whole object, by their names in its answers, in base64.
        etag_is_md5: Whether the ETag is made of MD5 sums.
        part_size: Bytes of each part but the last, of an object that was uploaded in parts; None: not known.
    """

    size: int
    etag: str
    sha256: str | None = None
    sums: Mapping[str, str] = field(default_factory=dict)
    etag_is_md5: bool = False
    part_size: int | None = None

    @property
    def checkable(self) -> bool:
        """Whether there is more to check content by than its size."""
        return bool(self.sha256 or self.sums or self.etag_is_md5)

    def fault(self, content: IO[bytes]) -> str | None:
        """What shows that ``content``, read to its end, is not the object's; None where nothing does."""
        name, expected = "", ""
        sum_: Any = None
        if self.sha256:
            name, sum_, expected = "SHA-256", hashlib.sha256(), self.sha256
        elif self.sums:
            key = next(iter(self.sums))
            name, sum_, expected = key.removeprefix("Checksum"), _SUMS[key](), base64.b64decode(self.sums[key]).hex()
        elif self.etag_is_md5:
            sum_ = _PartsSum(self.part_size) if self.part_size else _md5()
            name, expected = "MD5", self.etag.strip('"').partition("-")[0]
        size = 0
        while data := content.read(_CHUNK):
            size += len(data)
            if sum_ is not None:
                sum_.update(data)
        if size != self.size:
            return f"it has {size} bytes and should have {self.size}"
        if sum_ is not None and (found := sum_.digest().hex()) != expected:
            return f"its {name} sum is {found} and should be {expected}"
        return None


def known(bucket: str, key: str) -> Known | None:
    """What the server tells of an object; None where there is no such object."""
    from botocore.exceptions import ClientError

    try:
        answer = client().head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        if error_code(error) in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    told = known_from(answer)
    parts = _parts(told.etag)
    if told.sha256 or told.sums or not told.etag_is_md5 or parts == 0:
        return told
    # Of the size of its parts a server tells by the first of them.
    part_size = client().head_object(Bucket=bucket, Key=key, PartNumber=1, IfMatch=told.etag)["ContentLength"]
    if part_size <= 0 or math.ceil(told.size / part_size) != parts:
        return Known(told.size, told.etag)
    return Known(told.size, told.etag, etag_is_md5=True, part_size=part_size)


def known_from(answer: Mapping[str, Any]) -> Known:
    """What the answer to HEAD or to GET of a whole object tells of it."""
    etag = answer["ETag"]
    # A sum with the number of parts behind it is a sum of sums.
    sums = {
        name: answer[name]
        for name in _SUMS
        if "-" not in answer.get(name, "-") and answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    }
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    return Known(
        size=answer["ContentLength"],
        etag=etag,
        sha256=answer.get("Metadata", {}).get(METADATA_KEY),
        sums=sums,
        etag_is_md5=not encrypted and _ETAG.fullmatch(etag) is not None,
    )


def _parts(etag: str) -> int:
    """How many parts an ETag says that the object was uploaded in; 0: as a whole."""
    parsed = _ETAG.fullmatch(etag)
    return int(parsed[2] or 0) if parsed else 0


class _PartsSum:
    """The MD5 sum of the MD5 sums of parts, ``part_size`` bytes each but the last."""

    def __init__(self, part_size: int) -> None:
        self._part_size, self._room, self._sum, self._part = part_size, part_size, _md5(), _md5()

    def update(self, data: bytes) -> None:
        while data:
            piece, data = data[: self._room], data[self._room :]
            self._part.update(piece)
            self._room -= len(piece)
            if self._room == 0:
                self._end_part()

    def digest(self) -> bytes:
        if self._room < self._part_size:
            self._end_part()
        return bytes(self._sum.digest())

    def _end_part(self) -> None:
        self._sum.update(self._part.digest())
        self._part, self._room = _md5(), self._part_size


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)
