"""Bytes are told from an object's by whatever sum its server has of it."""

import base64
import hashlib
import io
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcore.s3.checksums import Known, known_from


def base64_of(digest):
    return base64.b64encode(digest).decode()


def etag(content, part_size=None):
    if part_size is None:
        return f'"{hashlib.md5(content).hexdigest()}"'
    sums = [hashlib.md5(content[start : start + part_size]).digest() for start in range(0, len(content), part_size)]
    return f'"{hashlib.md5(b"".join(sums)).hexdigest()}-{len(sums)}"'


@st.composite
def objects(draw):
    """Some content, and what a server may know of it."""
    content = draw(st.binary(min_size=1, max_size=200))
    part_size = draw(st.integers(1, 200))
    sums = {
        "ChecksumSHA256": base64_of(hashlib.sha256(content).digest()),
        "ChecksumSHA1": base64_of(hashlib.sha1(content).digest()),
        "ChecksumCRC32": base64_of(zlib.crc32(content).to_bytes(4, "big")),
    }
    size, opaque = len(content), '"opaque"'
    return content, draw(
        st.sampled_from(
            [
                Known(size, opaque, sha256=hashlib.sha256(content).hexdigest()),
                *(Known(size, opaque, sums={name: value}) for name, value in sums.items()),
                Known(size, etag(content), etag_is_md5=True),
                Known(size, etag(content, part_size), etag_is_md5=True, part_size=part_size),
            ]
        )
    )


@given(objects(), st.data())
def test_the_content_is_known_again_and_any_other_is_not(known_object, data):
    content, known = known_object
    assert known.checkable
    assert known.fault(io.BytesIO(content)) is None
    at = data.draw(st.integers(0, len(content) - 1))
    other = content[:at] + bytes([content[at] ^ (1 << data.draw(st.integers(0, 7)))]) + content[at + 1 :]
    assert "sum is" in known.fault(io.BytesIO(other))
    assert f"has {len(content) + 1} bytes and should have {len(content)}" in known.fault(io.BytesIO(content + b"x"))
    assert f"has {at} bytes" in known.fault(io.BytesIO(content[:at]))


@pytest.mark.parametrize(
    ("answer", "checkable"),
    [
        ({}, True),
        ({"ServerSideEncryption": "AES256"}, True),
        ({"ServerSideEncryption": "aws:kms"}, False),
        ({"SSECustomerAlgorithm": "AES256"}, False),
        ({"ServerSideEncryption": "aws:kms", "Metadata": {"modelcore-sha256": "00"}}, True),
        ({"ServerSideEncryption": "aws:kms", "ChecksumSHA256": "AAAA"}, True),
        ({"ServerSideEncryption": "aws:kms", "ChecksumSHA256": "AAAA-3"}, False),
        ({"ServerSideEncryption": "aws:kms", "ChecksumCRC32": "AAAA", "ChecksumType": "COMPOSITE"}, False),
        ({"ServerSideEncryption": "aws:kms", "ChecksumCRC64NVME": "AAAA"}, False),
        ({"ETag": '"0x8D"'}, False),
        ({"ServerSideEncryption": "aws:kms", "Metadata": {"sha256": "00"}}, False),
    ],
)
def test_an_etag_is_a_sum_unless_a_key_encrypts_and_a_sum_of_sums_is_none_of_the_whole(answer, checkable):
    whole = {"ETag": etag(b"content"), "ContentLength": 7} | answer
    assert known_from(whole).checkable is checkable
