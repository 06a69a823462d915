"""Reading JSON objects, and the sums by which files are known."""

import hashlib

import pytest

from modelcore.errors import InputError
from modelcore.files import content_digest, file_digest, file_digests, read_json


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


def test_digests_of_many_files_come_in_their_order(tmp_path):
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.write_bytes(path.name.encode() * (1 + 100_000 * (20 - int(path.name))))
    assert file_digests(paths) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_digests_of_no_files_are_none():
    assert file_digests([]) == []


def test_a_file_that_cannot_be_read_is_an_error_among_many_too(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(FileNotFoundError, match="missing"):
        file_digests([tmp_path / "a", tmp_path / "missing"])


def test_a_folders_digest_is_over_the_names_and_digests_of_its_files_in_order(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("b", "a", "folder/c"):
        (tmp_path / name).write_text(name)
    expected = "".join(f"{name}\0{hashlib.sha256(name.encode()).hexdigest()}\0" for name in ("a", "b", "folder/c"))
    assert content_digest(tmp_path) == hashlib.sha256(expected.encode()).hexdigest()
