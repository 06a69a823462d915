"""Putting a file of tokens together from what the workers left."""

import hashlib

import pytest

from modelcore.spark.tokenization import Assemble, assemble_shard


@pytest.fixture
def parts(tmp_path):
    for name, content in (("a", b"0123456789"), ("b", b"abcdef")):
        (tmp_path / name).write_bytes(content)
    return tmp_path / "a", tmp_path / "b"


def test_a_file_is_its_parts_one_after_the_other_with_their_sum(tmp_path, parts):
    first, second = parts
    made = assemble_shard(Assemble("shard", tmp_path, ((first, 4, 10), (second, 0, 2))))
    assert (tmp_path / "shard").read_bytes() == b"456789ab"
    assert (made.size, made.sha256) == (8, hashlib.sha256(b"456789ab").hexdigest())


def test_a_part_that_is_shorter_than_its_worker_told_is_an_error_and_leaves_no_file(tmp_path, parts):
    first, second = parts
    with pytest.raises(OSError, match=r"b ends at byte 6, 4 before it should$"):
        assemble_shard(Assemble("shard", tmp_path, ((first, 0, 10), (second, 2, 10))))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
