"""Writing leaves either the old content or the new, never something between."""

import contextlib
import errno
import json
import os
import re

import pytest

from modelcore import atomic
from modelcore.atomic import _exchange, atomic_directory, atomic_file, remove_leftovers, resumable_directory, write_json
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


def test_files_in_a_folder_are_readable_as_the_umask_allows(tmp_path):
    """safetensors writes 0600, which another user's container could not read."""
    with atomic_directory(tmp_path / "model") as fresh:
        (fresh / "weights").write_bytes(b"w")
        (fresh / "weights").chmod(0o600)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_is_replaced_in_one_step_where_the_system_can(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    if not _exchange(tmp_path / "model", tmp_path / "model"):
        pytest.skip("this file system cannot exchange two folders")
    monkeypatch.setattr(os, "rename", None)  # two renames would leave a moment without the folder
    with atomic_directory(tmp_path / "model") as fresh:
        (fresh / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "new"]


@pytest.mark.parametrize("moment", [1, 2])
def test_an_interrupt_while_folders_change_places_leaves_the_old_or_the_new(tmp_path, monkeypatch, moment):
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    write_json(tmp_path / "model" / "old.json", 1)
    rename, calls = os.rename, []

    def interrupted(source, destination):
        rename(source, destination)
        calls.append(source)
        if len(calls) == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "model") as fresh:
        (fresh / "new.json").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old.json" if moment == 1 else "new.json"]


def test_a_link_stays_one_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "model").symlink_to("real")
    (tmp_path / "note").symlink_to("not-there-yet")
    with atomic_directory(tmp_path / "model") as fresh:
        (fresh / "new").touch()
    write_json(tmp_path / "note", 1)
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "real" / "new").exists()
    assert (tmp_path / "not-there-yet").read_text() == "1\n"


def leave(folder, name, content=None):
    """What a process killed while it wrote leaves behind."""
    rest = folder / name
    rest.mkdir(parents=True)
    if content is not None:
        (rest / content).mkdir()
        (rest / content / "file").touch()


def test_what_killed_processes_left_of_a_name_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "model").mkdir()
    leave(tmp_path, ".model.a1b2c3d_.tmp")
    leave(tmp_path, ".model.a1b2c3de.old", "model")
    (tmp_path / ".model.abcdefgh.tmp").touch()
    kept = [".model.training", ".model.v2.a1b2c3d_.tmp", ".other.a1b2c3d_.tmp", "model"]
    leave(tmp_path, kept[0])
    leave(tmp_path, kept[1])
    leave(tmp_path, kept[2])
    remove_leftovers(tmp_path, re.compile("model"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_what_was_to_be_replaced_and_has_no_successor_yet_is_put_back(tmp_path):
    leave(tmp_path, ".model.a1b2c3d_.old", "model")
    leave(tmp_path, ".model.a1b2c3d_.tmp")
    remove_leftovers(tmp_path, re.compile("model"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "file").exists()


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path):
    remove_leftovers(tmp_path / "never-made", re.compile("model"))


class TestResumableDirectory:
    def test_what_a_block_wrote_that_failed_is_there_for_the_next_one(self, tmp_path):
        for last in (False, True):
            with contextlib.suppress(KeyboardInterrupt), resumable_directory(tmp_path / "out") as fresh:
                assert [path.name for path in fresh.iterdir()] == (["first"] if last else [])
                (fresh / ("second" if last else "first")).write_text("x")
                if not last:
                    raise KeyboardInterrupt
            assert (tmp_path / "out").exists() == last
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first", "second"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_what_stood_there_stays_until_the_new_is_complete_and_is_gone_then(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").touch()
        with resumable_directory(tmp_path / "out") as fresh:
            (fresh / "new").touch()
            assert (tmp_path / "out" / "old").exists()
        assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/new"]

    def test_one_process_at_a_time(self, tmp_path):
        with resumable_directory(tmp_path / "out"):
            with pytest.raises(InputError, match=r"another process is writing .*/out; wait for it"):
                with resumable_directory(tmp_path / "out"):
                    pass
        with resumable_directory(tmp_path / "out"):
            pass
