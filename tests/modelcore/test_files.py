"""Reading JSON objects, and the sums by which files are known."""

import hashlib

import pytest

from modelcore.errors import InputError
from modelcore.files import file_digest, read_json


def test_an_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"name": "Zoë", "sizes": [1, 2]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"name": "Zoë", "sizes": [1, 2]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "holds a JSON list; an object is needed"),
        (None, "is missing"),
    ],
)
def test_what_is_no_object_is_one_line_that_names_the_file(content, message, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.json {message}") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_a_files_digest_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
