"""Backup and restore: all or nothing, and no harm done. test_server.py restores a real server after a loss."""

import gzip
import hashlib
import json
import signal
import subprocess
import sys

import psycopg
import pytest

from tests.mlflow.conftest import objects
from tracking_server import artifacts
from tracking_server.__main__ import main

SUMS = "is no backup: manifest.json must hold the sums of artifacts.tar and database.sql.gz"
DAMAGED = "is damaged: artifacts.tar, database.sql.gz is not what was written"


@pytest.fixture(scope="module")
def small(new_server, s3, tmp_path_factory):
    """A database with a table and a function, a bucket with an object, and a backup of them; no server runs there."""
    server = new_server("small")
    assert server.run("create-bucket").returncode == 0
    with psycopg.connect(server.environment["MLFLOW_BACKEND_STORE_URI"]) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        connection.execute("INSERT INTO alembic_version VALUES ('one')")
        connection.execute("CREATE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 42'")
    s3.client().put_object(Bucket="small", Key="artifacts/deep/er/file", Body=b"first", ContentType="text/x-own")
    s3.client().put_object(Bucket="small", Key="artifacts/deep", Body=b"a file that is a folder too")
    s3.client().put_object(Bucket="small", Key="others/file", Body=b"not the server's")
    folder = tmp_path_factory.mktemp("small") / "backup"
    made = server.run("backup", folder)
    assert made.returncode == 0, made.stderr
    return server, folder


def query(server, text):
    with psycopg.connect(server.environment["MLFLOW_BACKEND_STORE_URI"]) as connection:
        cursor = connection.execute(text)
        return cursor.fetchall() if cursor.description else None


def test_a_backup_holds_what_is_below_the_prefix_and_says_what_it_holds(small):
    _, folder = small
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["artifacts"], manifest["revisions"]) == (2, {"alembic_version": "one"})
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest["sha256"]}
    assert (folder.stat().st_mode & 0o777) == 0o700


def test_a_backup_never_replaces_another(small):
    server, folder = small
    again = server.run("backup", folder)
    assert (again.returncode, again.stderr) == (1, f"error: {folder} exists; a backup never replaces another\n")


def test_a_database_that_holds_anything_is_replaced_only_when_told(small, s3):
    server, folder = small
    query(server, "UPDATE alembic_version SET version_num = 'two'")
    query(server, "CREATE TABLE of_a_later_version (x int)")
    s3.client().put_object(Bucket="small", Key="artifacts/deep/er/file", Body=b"second")
    s3.client().put_object(Bucket="small", Key="artifacts/later", Body=b"stays")
    refused = server.run("restore", folder)
    assert refused.returncode == 1
    assert refused.stderr == "error: the database holds 2 tables; --replace puts the backup in their place\n"
    assert query(server, "SELECT version_num FROM alembic_version") == [("two",)]

    for _ in range(2):  # what was restored can be replaced again
        restored = server.run("restore", folder, "--replace")
        assert restored.returncode == 0, restored.stderr
        assert query(server, "SELECT version_num, answer() FROM alembic_version") == [("one", 42)]
        assert query(server, "SELECT to_regclass('of_a_later_version')") == [(None,)]
    there = objects(s3, "small")
    assert there["artifacts/deep/er/file"] == (b"first", "text/x-own")
    assert there["artifacts/later"][0] == b"stays"


@pytest.mark.parametrize("file", ["database.sql.gz", "artifacts.tar"])
def test_a_damaged_backup_is_refused_before_anything_is_touched(small, file, tmp_path):
    server, folder = small
    copy = copy_of(folder, tmp_path)
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    refused = server.run("restore", copy, "--replace")
    assert refused.stderr == f"error: {copy} is damaged: {file} is not what was written\n"
    assert query(server, "SELECT version_num FROM alembic_version") == [("one",)]


def copy_of(folder, tmp_path):
    (tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "copy"


@pytest.mark.parametrize("end", ["SELECT 1 / 0;", "\\copy alembic_version from stdin\nhalf a line"])
def test_a_dump_that_cannot_be_loaded_to_its_end_leaves_the_database_as_it_was(small, end, tmp_path):
    server, folder = small
    copy = copy_of(folder, tmp_path)
    dump = gzip.decompress((copy / "database.sql.gz").read_bytes()).decode()
    (copy / "database.sql.gz").write_bytes(gzip.compress((dump + end).encode()))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["sha256"]["database.sql.gz"] = hashlib.sha256((copy / "database.sql.gz").read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    query(server, "UPDATE alembic_version SET version_num = 'mine'")
    refused = server.run("restore", copy, "--replace")
    assert refused.returncode == 1
    assert "the database is as it was" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert query(server, "SELECT version_num FROM alembic_version") == [("mine",)]
    query(server, "UPDATE alembic_version SET version_num = 'one'")


def test_something_that_is_no_backup_and_an_empty_database_are_one_line(small, new_server, tmp_path):
    server, _ = small
    assert server.run("restore", tmp_path).stderr.startswith(f"error: {tmp_path} is no backup: ")
    empty = new_server("empty").run("backup", tmp_path / "of-nothing")
    assert empty.stderr == "error: the database is empty; there is nothing to back up\n"
    assert list(tmp_path.iterdir()) == []


def test_a_backup_that_fails_leaves_nothing_behind(small, s3, tmp_path):
    server, _ = small
    before = server.environment
    server.environment = before | {"AWS_SECRET_ACCESS_KEY": "not-the-key"}
    try:
        failed = server.run("backup", tmp_path / "new")
    finally:
        server.environment = before
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: s3://small/artifacts cannot be used: ")
    assert "not-the-key" not in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_database_whose_encoding_mlflow_cannot_use_ends_the_server_with_one_line(small, postgres):
    server, _ = small
    before = server.environment
    server.environment = before | {"MLFLOW_BACKEND_STORE_URI": postgres.make_database("ascii", "SQL_ASCII")}
    try:
        refused = server.run("serve")
    finally:
        server.environment = before
    assert (refused.returncode, refused.stderr) == (
        1,
        "error: the database keeps text as SQL_ASCII; make one with ENCODING 'UTF8' TEMPLATE template0\n",
    )


def test_of_two_backups_to_one_folder_at_once_the_first_to_end_is_whole_and_the_other_one_line(
    small, tmp_path, monkeypatch, operate
):
    server, _ = small
    folder = tmp_path / "new" / "backup"
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD"):
        monkeypatch.setenv(name, "")  # so that what is exported ends with the test
    for name in [name for name in server.environment if name.startswith("AWS_") or name == "PATH"]:
        monkeypatch.setenv(name, server.environment[name])
    save, other = artifacts.save, []

    def while_another_is_made(*arguments):
        other.append(server.run("backup", folder))
        return save(*arguments)

    monkeypatch.setattr(artifacts, "save", while_another_is_made)
    refused = operate(server, "backup", str(folder))
    assert (other[0].returncode, other[0].stderr) == (0, "")
    assert refused == f"error: {folder} exists; a backup never replaces another"
    assert [path.name for path in folder.parent.iterdir()] == ["backup"]
    assert {path.name for path in folder.iterdir()} == {"artifacts.tar", "database.sql.gz", "manifest.json"}
    assert main(["restore", str(folder), "--replace"]) is None


def test_what_a_killed_backup_left_is_removed_by_the_next_one_to_its_folder_and_nothing_else_is(small, tmp_path):
    server, _ = small
    killed = (
        "import os, signal, sys; from tracking_server import __main__, artifacts; "
        "artifacts.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL); __main__.main(sys.argv[1:])"
    )
    for name in ("backup", "another"):
        command = [sys.executable, "-c", killed, "backup", str(tmp_path / name)]
        assert subprocess.run(command, env=server.environment, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".backup.*.partial")
    (anothers,) = tmp_path.glob(".another.*.partial")
    assert (left / "database.sql.gz").is_file()
    (tmp_path / ".backup.mine.partial").mkdir()
    made = server.run("backup", tmp_path / "backup")
    assert (made.returncode, made.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"backup", anothers.name, ".backup.mine.partial"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: [], "is no backup: manifest.json is not what a backup writes"),
        (lambda manifest: None, "is no backup: manifest.json is not what a backup writes"),
        (lambda manifest: {"sha256": manifest["sha256"]}, "is no backup: manifest.json is not what a backup writes"),
        (lambda manifest: manifest | {"sha256": []}, SUMS),
        (lambda manifest: manifest | {"sha256": {}}, SUMS),
        (lambda manifest: manifest | {"sha256": {"database.sql.gz": manifest["sha256"]["database.sql.gz"]}}, SUMS),
        (lambda manifest: manifest | {"sha256": manifest["sha256"] | {"../other": "0"}}, SUMS),
        (lambda manifest: manifest | {"sha256": dict.fromkeys(manifest["sha256"])}, DAMAGED),
    ],
)
def test_a_manifest_that_no_backup_writes_is_one_line(small, tmp_path, operate, change, said):
    server, folder = small
    copy = copy_of(folder, tmp_path)
    (copy / "manifest.json").write_text(json.dumps(change(json.loads((copy / "manifest.json").read_text()))))
    assert operate(server, "restore", str(copy), "--replace") == f"error: {copy} {said}"


@pytest.mark.parametrize("file", ["database.sql.gz", "artifacts.tar"])
def test_a_backup_of_which_a_file_is_missing_is_one_line_that_names_it(small, tmp_path, operate, file):
    server, folder = small
    copy = copy_of(folder, tmp_path)
    (copy / file).unlink()
    said = operate(server, "restore", str(copy), "--replace")
    assert said == f"error: {copy} is damaged: {copy / file}: No such file or directory"
