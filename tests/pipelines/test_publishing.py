"""A finished run is copied to a place of the team's own, whole, and gone on with where that was interrupted."""

import hashlib
import json
import os
import shutil
import threading

import pytest

from modelcore import storage
from modelcore.errors import InputError
from modelcore.s3 import upload
from pipelines import local, publishing, run_folder
from tests.servers.faulty_proxy import Answer, Lost


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run."""
    folder = tmp_path / "runs" / "mine"
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "model.safetensors").write_bytes(b"weights")
    (folder / "report" / "data_docs").mkdir(parents=True)
    (folder / "report" / "data_docs" / "index.html").write_text("page")
    (folder / "run.json").write_text('{"name": "mine", "started": "2026-01-01T00:00:00+00:00"}')
    return folder


@pytest.fixture
def other(run, tmp_path):
    """The folder of another finished run of the same name."""
    folder = tmp_path / "elsewhere" / "mine"
    shutil.copytree(run, folder)
    (folder / "export" / "model.safetensors").write_bytes(b"others!")
    (folder / "run.json").write_text('{"name": "mine", "started": "2026-01-02T00:00:00+00:00"}')
    return folder


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    return f"s3://{request.getfixturevalue('s3_bucket')}/runs" if request.param == "s3" else str(tmp_path / "there")


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_there_with_a_manifest_of_sizes_and_sums(run, place, tmp_path):
    assert publishing.publish(run, place) == f"{place}/mine"
    storage.download_directory(f"{place}/mine", tmp_path / "back")
    back = content(tmp_path / "back")
    assert back == content(run)
    files = json.loads(back.pop("manifest.json"))["files"]
    assert files == {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in back.items()
    }


def test_a_run_that_was_published_is_published_again_without_sending_it(run, s3_bucket, s3_proxy):
    publishing.publish(run, f"s3://{s3_bucket}/runs")
    s3_proxy.forget()
    publishing.publish(run, f"s3://{s3_bucket}/runs/")
    assert {request.method for request in s3_proxy.requests} == {"HEAD"}


def test_the_name_of_a_published_run_is_not_taken_again(run, place):
    publishing.check(place, "mine")
    publishing.publish(run, place)
    with pytest.raises(InputError, match=r"^publish: there is something at .*/mine already; choose another NAME"):
        publishing.check(place, "mine")
    publishing.check(place, "another")


def test_a_bucket_that_is_not_there_is_found_out_before_the_run(s3_environment, tmp_path, capsys):
    options = ["--runs", str(tmp_path), "--name", "mine", "--publish", "s3://no-such-bucket-here/runs"]
    assert local.main(options) == 1
    assert capsys.readouterr().err == "error: s3://no-such-bucket-here/runs/mine: there is no such bucket\n"
    assert not any(tmp_path.iterdir())


def test_a_failure_names_the_command_that_publishes_alone(run, s3_bucket, s3_proxy, capsys):
    uri = f"s3://{s3_bucket}/runs"
    options = ["--runs", str(run.parent), "--name", "mine", "--publish", uri]
    s3_proxy.fail(*[Answer(503, "SlowDown")] * 4, when=lambda request: request.path.endswith("model.safetensors"))
    assert local.main(options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: the run is complete, but not published: {uri}/mine/export/model.safetensors: ")
    assert error.endswith(f'; publish it with: make pipeline NAME=mine RUNS={run.parent} ARGS="--publish={uri}"')
    assert "manifest.json" not in storage.list_children(f"{uri}/mine")
    assert local.main(options) == 0
    assert capsys.readouterr().out == f"published     {uri}/mine\n"
    assert "manifest.json" in storage.list_children(f"{uri}/mine")


def publish_by_command(folder, place):
    return local.main(["--runs", str(folder.parent), "--name", folder.name, "--publish", place])


def there(place, into):
    storage.download_directory(f"{place}/mine", into)
    return content(into)


def test_a_finished_run_does_not_replace_another_of_its_name(run, other, place, tmp_path, capsys):
    assert publish_by_command(other, place) == 0
    capsys.readouterr()
    assert publish_by_command(run, place) == 1
    assert capsys.readouterr().err == (
        f"error: publish: there is something at {place}/mine already; choose another NAME, or another place\n"
    )
    assert there(place, tmp_path / "back") == content(other)


def test_a_finished_run_does_not_replace_what_is_no_run(run, tmp_path, place, capsys):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    storage.upload_directory(tmp_path / "foreign", f"{place}/mine")
    assert publish_by_command(run, place) == 1
    assert capsys.readouterr().err.startswith(f"error: publish: there is something at {place}/mine already")
    assert there(place, tmp_path / "back") == {"thesis.txt": b"years of work"}


def test_a_file_beside_a_published_run_is_not_lost_when_that_is_published_again(run, tmp_path, capsys):
    place = str(tmp_path / "there")
    publishing.publish(run, place)
    notes = tmp_path / "there" / "mine" / "notes.txt"
    notes.write_text("mine")
    assert publish_by_command(run, place) == 1
    assert "holds more than this run (notes.txt)" in capsys.readouterr().err
    notes.unlink()
    assert publish_by_command(run, place) == 0


def test_a_run_killed_before_its_work_was_removed_is_published(run, place, tmp_path, capsys):
    (run / run_folder.WORK / "kfp").mkdir(parents=True)
    (run / run_folder.WORK / "kfp" / "half").write_text("half")
    assert publish_by_command(run, place) == 0
    assert not (run / run_folder.WORK).exists()
    assert there(place, tmp_path / "back") == content(run)


@pytest.mark.parametrize("publish", [True, False])
@pytest.mark.parametrize("newer", [True, False])
def test_a_run_killed_before_it_was_the_latest_is_so_after_the_same_command(run, tmp_path, newer, publish, capsys):
    (run / run_folder.WORK).mkdir()
    another = run.with_name("another")
    shutil.copytree(run, another)
    finished = (run / "run.json").stat().st_mtime + (10 if newer else -10)
    os.utime(another / "run.json", (finished, finished))
    run_folder.point_latest(run.parent, "another")
    options = ["--publish", str(tmp_path / "there")] if publish else []
    assert local.main(["--runs", str(run.parent), "--name", "mine", *options]) == 0
    assert (run.parent / "latest").readlink().name == ("another" if newer else "mine")
    assert not (run / run_folder.WORK).exists()
    said = capsys.readouterr()
    assert said.out == (f"published     {tmp_path}/there/mine\n" if publish else "")
    assert said.err == ("" if publish else f"run mine is complete: {run}\n")


def test_a_run_refused_at_the_last_moment_is_told_to_go_elsewhere(run, other, place, tmp_path, monkeypatch, capsys):
    check, checks = publishing.check_again, []

    def check_and_let_another_in(folder, uri):
        check(folder, uri)
        checks.append(folder)
        if len(checks) == 2:  # before the command's work, and right before the copy
            storage.upload_directory(other, f"{place}/mine")

    monkeypatch.setattr(publishing, "check_again", check_and_let_another_in)
    assert publish_by_command(run, place) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "not published: " in line
    assert "something else came to stand" in line
    assert line.endswith(
        f'; publish it elsewhere: make pipeline NAME=mine RUNS={run.parent} ARGS="--publish=ANOTHER-PLACE"'
    )
    assert there(place, tmp_path / "back") == content(other)


def test_a_run_whose_last_moments_are_under_way_is_left_alone(run, tmp_path, capsys):
    with run_folder.only_one(run):
        assert publish_by_command(run, str(tmp_path / "there")) == 1
    assert "is under way in another process" in capsys.readouterr().err
    assert (run / run_folder.WORK).exists()


def test_of_two_runs_published_at_once_one_is_refused_and_the_other_whole(run, other, place, tmp_path, monkeypatch):
    barrier, errors, check = threading.Barrier(2), {}, publishing.check_again

    def both_checked(folder, uri):
        check(folder, uri)
        barrier.wait(timeout=60)

    def publish(folder):
        try:
            publishing.publish(folder, place)
        except InputError as error:
            errors[folder] = str(error)

    monkeypatch.setattr(publishing, "check_again", both_checked)
    threads = [threading.Thread(target=publish, args=(folder,)) for folder in (run, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (refused,) = errors
    assert "something else came to stand" in errors[refused]
    assert there(place, tmp_path / "back") == content(other if refused == run else run)


def test_where_a_server_lets_two_in_the_mixture_is_told(run, other, s3_bucket, monkeypatch):
    place, original = f"s3://{s3_bucket}/runs", upload.upload

    def meanwhile(*arguments, **named):
        monkeypatch.setattr(upload, "upload", original)
        original(*arguments, **named)
        storage.upload_directory(other, f"{place}/mine")

    monkeypatch.setattr(upload, "upload", meanwhile)
    with pytest.raises(InputError, match=r"/mine: something else was written there at the same time"):
        publishing.publish(run, place)


def test_a_server_without_conditional_requests_takes_a_run(run, s3_bucket, s3_proxy, tmp_path):
    s3_proxy.fail(
        Answer(501, "NotImplemented"), when=lambda request: request.method == "PUT" and "run.json" in request.path
    )
    publishing.publish(run, f"s3://{s3_bucket}/runs")
    assert s3_proxy.pending == 0
    assert there(f"s3://{s3_bucket}/runs", tmp_path / "back") == content(run)


def test_a_claim_whose_answer_was_lost_is_still_ours(run, s3_bucket, s3_proxy, tmp_path):
    s3_proxy.fail(Lost(), when=lambda request: request.method == "PUT" and "run.json" in request.path)
    publishing.publish(run, f"s3://{s3_bucket}/runs")
    assert s3_proxy.pending == 0
    assert there(f"s3://{s3_bucket}/runs", tmp_path / "back") == content(run)


class TestBeforeTheFirstStage:
    def refused(self, place, runs, capsys):
        """The one line by which a new run is refused."""
        assert local.main(["--runs", str(runs), "--name", "mine", "--publish", str(place)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert not runs.exists()
        return line

    def test_a_file_in_the_way_is_found_out(self, tmp_path, capsys):
        (tmp_path / "file").write_text("a file")
        for place in (tmp_path / "file", tmp_path / "file" / "below"):
            line = self.refused(place, tmp_path / "runs", capsys)
            assert line == f"error: {place}/mine cannot be written: {tmp_path / 'file'} is a file"
        (tmp_path / "mine").write_text("a file")
        line = self.refused(tmp_path, tmp_path / "runs", capsys)
        assert line.startswith(f"error: publish: there is something at {tmp_path}/mine already")

    def test_a_folder_without_permission_is_found_out(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "locked").mkdir()
        access = os.access  # the tests may run as root, who may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "locked" and access(path, mode))
        line = self.refused(tmp_path / "locked", tmp_path / "runs", capsys)
        assert line == f"error: {tmp_path}/locked/mine cannot be written: no permission to write in {tmp_path}/locked"

    def test_the_folder_of_the_run_itself_is_refused(self, tmp_path, capsys):
        for place in (tmp_path / "runs", tmp_path / "runs" / "mine"):
            line = self.refused(place, tmp_path / "runs", capsys)
            assert line.endswith("/mine is in the folder of the run itself; choose another place")

    def test_an_s3_address_with_one_slash_is_no_path(self, tmp_path, capsys):
        line = self.refused("s3:/bkt/x", tmp_path / "runs", capsys)
        assert line == "error: s3:/bkt/x/mine is no address; write s3://bucket/prefix, or ./s3:/bkt/x/mine for a path"
