"""A finished run is copied to a place of the team's own, whole, and gone on with where that was interrupted."""

import hashlib
import json

import pytest

from modelcore import storage
from modelcore.errors import InputError
from pipelines import local, publishing
from tests.servers.faulty_proxy import Answer


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run."""
    folder = tmp_path / "runs" / "mine"
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "model.safetensors").write_bytes(b"weights")
    (folder / "report" / "data_docs").mkdir(parents=True)
    (folder / "report" / "data_docs" / "index.html").write_text("page")
    (folder / "run.json").write_text("{}")
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
