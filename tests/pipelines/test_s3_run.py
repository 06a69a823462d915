"""The whole pipeline with S3 on both ends: what goes in, what comes out, and that no secret is anywhere in it."""

import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelcore import storage
from modelcore.data.corpus import read_documents
from modelcore.errors import InputError
from modelcore.stages.validate_data import validate_data
from pipelines.compile import COMPILED

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    *("--vocab-size", "400", "--steps", "24", "--batch-size", "4", "--sequence-length", "64"),
    *("--lora-steps", "3", "--lora-rank", "2", "--task-items", "0"),
]


@pytest.fixture
def bucket(s3_bucket, s3_server):
    """A bucket with a corpus, an evaluation text and conversations."""
    novel = (REPOSITORY / "examples/austen/train/emma.txt").read_bytes()
    pairs = [{"prompt": f"Is it {n} o'clock?", "response": f"It is {n}, sir."} for n in range(40)]
    for key, body in {
        "texts/a.txt": novel[:40_000],
        "texts/more/b.txt.gz": gzip.compress(novel[40_000:80_000]),
        "test/held.txt": novel[100_000:110_000],
        "pairs.jsonl": "".join(json.dumps(pair) + "\n" for pair in pairs).encode(),
    }.items():
        s3_server.client().put_object(Bucket=s3_bucket, Key=key, Body=body)
    return s3_bucket


def secrets_of(server):
    return [server.secret_key, server.access_key, *server.reader]


def assert_no_secret(server, texts):
    for secret in secrets_of(server):
        for name, text in texts.items():
            assert secret.encode() not in text, f"{name} has {secret}"


def files_below(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_secret_gets_into_logs_errors_and_outputs_of_a_stage(bucket, s3_server, s3_environment, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "modelcore")
    outputs = {f"{name}_out": tmp_path / name for name in ("train", "heldout", "quarantine", "docs")}
    validate_data(corpus=f"s3://{bucket}/texts", summary=tmp_path / "summary.json", **outputs)
    assert sum(1 for _ in read_documents(tmp_path / "train")) > 0
    errors = {}
    for name, (access, secret) in {
        "refused": (s3_server.reader[0], s3_server.reader[1]),
        "wrong secret": (s3_server.access_key, s3_server.reader[1]),
        "unknown": (s3_server.reader[0] + "X", s3_server.secret_key),
    }.items():
        s3_environment.setenv("AWS_ACCESS_KEY_ID", access)
        s3_environment.setenv("AWS_SECRET_ACCESS_KEY", secret)
        with pytest.raises(InputError) as caught:
            storage.upload_directory(tmp_path / "docs", f"s3://{bucket}/out")
        errors[name] = str(caught.value).encode()
    assert_no_secret(s3_server, errors | {"log": caplog.text.encode()} | files_below(tmp_path))


@pytest.mark.slow
def test_the_compiled_pipeline_holds_no_setting_of_the_one_who_compiles(s3_server, s3_environment):
    compiled = subprocess.run(
        [sys.executable, "-c", "from pipelines.compile import compile_pipeline; print(compile_pipeline(), end='')"],
        check=True,
        cwd=REPOSITORY,
        capture_output=True,
    ).stdout
    assert compiled == COMPILED.read_bytes()
    assert_no_secret(s3_server, {"compiled": compiled})


@pytest.mark.slow
def test_a_run_from_s3_to_s3(bucket, s3_server, tmp_path):
    uri = f"s3://{bucket}"
    ends = {
        "--corpus": f"{uri}/texts",
        "--heldout": f"{uri}/test/held.txt",
        "--instructions": f"{uri}/pairs.jsonl",
        "--checkpoint-uri": f"{uri}/checkpoints",
        "--publish": f"{uri}/runs",
    }
    words = [word for option in ends.items() for word in option]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.local", "--runs", str(tmp_path / "runs"), "--name", "mine", *SMALL, *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().endswith(f"published     {uri}/runs/mine\n")
    assert storage.list_children(f"{uri}/checkpoints") == ["step-00000024"]
    storage.download_directory(f"{uri}/runs/mine", tmp_path / "back")
    run = tmp_path / "runs" / "mine"
    assert {name.removeprefix(str(run)) for name in files_below(run)} == {
        name.removeprefix(str(tmp_path / "back")) for name in files_below(tmp_path / "back")
    }
    assert not (run / ".work").exists()
    assert_no_secret(s3_server, {"out": done.stdout, "err": done.stderr} | files_below(tmp_path / "runs"))
