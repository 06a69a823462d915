"""Writing leaves either the old content or the new, never something between."""

import errno
import json
import os

import pytest

from modelcore.atomic import atomic_directory, atomic_file, write_json
from modelcore.errors import InputError


def test_a_file_appears_whole_and_with_ordinary_permissions(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"x": "é"})
    assert json.loads((tmp_path / "deep" / "a.json").read_text(encoding="utf-8")) == {"x": "é"}
    assert (tmp_path / "deep" / "a.json").stat().st_mode & 0o400
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_takes_the_place_of_the_old_one_only_when_complete(tmp_path):
    path = tmp_path / "model"
    with atomic_directory(path) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_directory(path) as fresh:
        (fresh / "b").write_text("2")
        raise RuntimeError
    assert [item.name for item in path.iterdir()] == ["a"]
    with atomic_directory(path) as fresh:
        (fresh / "b").write_text("2")
    assert [item.name for item in path.iterdir()] == ["b"]
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, number):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"no space left on the disk while writing .*a\.bin"), atomic_file(path):
        raise OSError(number, "full")
    assert path.read_bytes() == b"old"


def test_a_really_full_disk_is_reported_the_same_way():
    """/dev/full refuses every byte, as a full disk does."""
    from modelcore.atomic import _readable_disk_errors

    with pytest.raises(InputError, match="no space left"), _readable_disk_errors("/dev/full"):
        with open("/dev/full", "wb") as file:
            file.write(b"x" * 100_000)


def test_files_in_a_folder_are_readable_as_the_umask_allows(tmp_path):
    """safetensors writes 0600, which another user's container could not read."""
    with atomic_directory(tmp_path / "model") as fresh:
        (fresh / "weights").write_bytes(b"w")
        (fresh / "weights").chmod(0o600)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o666 & ~umask
