"""The tracking server as its image starts it, on a real PostgreSQL and a real S3."""

import json
import urllib.error
import urllib.request
from base64 import b64encode

import psutil
import psycopg
import pytest

from modelcore import tracking
from modelcore.errors import InputError
from tests.mlflow.conftest import EXPERIMENT, SAMPLES, as_user, objects

SEARCH = "/api/2.0/mlflow/experiments/search?max_results=10"


def status(server, path, user=None, host=None):
    request = urllib.request.Request(server.uri + path)
    if user:
        request.add_header("Authorization", "Basic " + b64encode(":".join(user).encode()).decode())
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_gets_in_without_the_right_password(tracked):
    server = tracked.server
    assert status(server, SEARCH, ("admin", server.password)) == 200
    assert status(server, SEARCH) == 401
    assert status(server, "/") == 401
    assert status(server, SEARCH, ("admin", server.password[:-1])) == 401
    assert status(server, SEARCH, ("root", server.password)) == 401


def test_it_answers_only_to_the_host_names_it_was_given_but_tells_its_health_to_everybody(tracked):
    server, admin = tracked.server, ("admin", tracked.server.password)
    assert status(server, SEARCH, admin, f"mlflow.example.org:{server.port}") == 200
    assert status(server, SEARCH, admin, "mlflow.example.org:1") == 403
    assert status(server, SEARCH, admin, "evil.example.org") == 403
    assert status(server, "/health", host="evil.example.org") == 200
    checked = server.run("health")
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_pipeline_is_one_run_and_its_stages_are_nested_in_it(tracked, monkeypatch):
    as_user(monkeypatch, tracked.server, "admin", tracked.server.password)
    assert tree_of(tracked.server) == {
        name: {"steps": name.split("-")[0], "stages": {"pretrain", "evaluate"}} for name in ("600-steps", "800-steps")
    }


def tree_of(server):
    """What the server has, by pipeline run: its parameter and its stages, artifacts read through the server."""
    import mlflow

    client = mlflow.MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    tree = {}
    for parent in [run for run in runs if run.data.tags["stage"] == "pipeline"]:
        stages = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        tree[parent.info.run_name] = {"steps": parent.data.params["steps"], "stages": {s.info.run_name for s in stages}}
        (pretrain,) = [run for run in stages if run.info.run_name == "pretrain"]
        assert mlflow.artifacts.load_text(f"runs:/{pretrain.info.run_id}/samples/samples.txt") == SAMPLES
    return tree


def test_artifacts_go_through_the_server_to_s3_for_clients_without_keys(tracked, s3, monkeypatch):
    import mlflow

    as_user(monkeypatch, tracked.server, "admin", tracked.server.password)
    client = mlflow.MlflowClient()
    run = tracking.start_stage("ad-hoc")
    run.log_text("through the server", "notes/one.txt")
    run.end()
    assert mlflow.artifacts.load_text(f"runs:/{run.run_id}/notes/one.txt") == "through the server"
    assert client.get_run(run.run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    listed = s3.client().list_objects_v2(Bucket="tracked", Prefix="artifacts/")["Contents"]
    (key,) = [item["Key"] for item in listed if item["Key"].endswith(f"{run.run_id}/artifacts/notes/one.txt")]
    assert s3.client().get_object(Bucket="tracked", Key=key)["Body"].read() == b"through the server"
    client.delete_experiment(client.get_run(run.run_id).info.experiment_id)


def test_users_read_everything_and_change_what_is_theirs_until_they_are_granted_more(tracked, monkeypatch, operate):
    server = tracked.server
    assert operate(server, "user", "add", "ada", typed="analytical engine\n") is None
    again = operate(server, "user", "add", "ada", typed="analytical engine\n")
    assert again.startswith(f"error: {server.uri}: ")
    assert "already exists" in again
    assert "\n" not in again

    as_user(monkeypatch, server, "ada", "analytical engine")
    assert {"600-steps", "800-steps"} <= set(tree_of(server))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    with pytest.raises(InputError, match="Permission denied"):
        tracking.start_stage("adas")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "adas-own")
    tracking.start_stage("adas").end()

    assert operate(server, "user", "grant", "ada", "experiment", EXPERIMENT, "EDIT") is None
    as_user(monkeypatch, server, "ada", "analytical engine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    tracking.start_stage("adas").end()
    assert operate(server, "user", "grant", "ada", "experiment", EXPERIMENT, "READ") is None
    as_user(monkeypatch, server, "ada", "analytical engine")
    with pytest.raises(InputError, match="Permission denied"):
        tracking.start_stage("adas")
    assert operate(server, "user", "grant", "ada", "experiment", "nothing", "EDIT") == (
        'error: there is no experiment "nothing"'
    )

    assert operate(server, "user", "password", "ada", typed="difference engine\n") is None
    assert status(server, SEARCH, ("ada", "analytical engine")) == 401
    assert status(server, SEARCH, ("ada", "difference engine")) == 200
    assert operate(server, "user", "password", "ada", typed="short\n") == (
        "error: the password has 5 characters; it needs 12 or more"
    )
    assert operate(server, "user", "delete", "ada") is None
    assert status(server, SEARCH, ("ada", "difference engine")) == 401


def test_an_administrator_may_make_users(tracked, operate):
    assert operate(tracked.server, "user", "add", "grace", "--admin", typed="nanoseconds of wire\n") is None
    users = json.loads(read(tracked.server, "/api/2.0/mlflow/users/list", ("grace", "nanoseconds of wire")))["users"]
    assert {user["username"]: user["is_admin"] for user in users}["grace"]


def read(server, path, user):
    request = urllib.request.Request(server.uri + path)
    request.add_header("Authorization", "Basic " + b64encode(":".join(user).encode()).decode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def test_it_is_one_process_that_fits_beside_a_training_run(tracked):
    process = psutil.Process(tracked.server.pid)
    assert process.children(recursive=True) == []
    assert process.memory_full_info().pss < 450 << 20


def test_its_secrets_are_in_no_log_and_on_no_command_line(tracked, postgres):
    server = tracked.server
    secrets = (server.password, server.secret_key, postgres.password, server.environment["AWS_SECRET_ACCESS_KEY"])
    said = server.log.read_text() + " ".join(psutil.Process(server.pid).cmdline())
    assert "Uvicorn running" in said
    for secret in secrets:
        assert secret not in said


def test_a_bucket_that_is_there_is_left_alone_and_one_that_is_refused_is_one_line(tracked, s3):
    assert tracked.server.run("create-bucket").stdout == "bucket tracked: was there\n"
    access, secret = s3.reader
    reader = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "MLFLOW_ARTIFACTS_DESTINATION": "s3://new"}
    before, tracked.server.environment = tracked.server.environment, tracked.server.environment | reader
    try:
        refused = tracked.server.run("create-bucket")
    finally:
        tracked.server.environment = before
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: s3://new cannot be used: ")
    assert refused.stderr.count("\n") == 1
    assert secret not in refused.stderr


def wipe(server, postgres, s3):
    """A new machine: an empty database and no bucket."""
    name = server.environment["MLFLOW_BACKEND_STORE_URI"].rpartition("/")[2]
    with psycopg.connect(postgres.uri(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name}")
        connection.execute(f"CREATE DATABASE {name}")
    client, bucket = s3.client(), server.environment["MLFLOW_ARTIFACTS_DESTINATION"].split("/")[2]
    for listed in client.list_objects_v2(Bucket=bucket)["Contents"]:
        client.delete_object(Bucket=bucket, Key=listed["Key"])
    client.delete_bucket(Bucket=bucket)


def test_what_was_backed_up_while_serving_is_there_again_after_everything_was_lost(
    tracked, postgres, s3, operate, tmp_path, monkeypatch
):
    server = tracked.server
    before = objects(s3, "tracked")
    assert operate(server, "user", "add", "mary", typed="of long standing\n") is None
    made = server.run("backup", tmp_path / "monday")
    assert made.stdout == f"{tmp_path / 'monday'}: the database and {len(before)} artifacts\n", made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["monday"]

    refused = server.run("restore", tmp_path / "monday", "--replace")
    assert "other connections use the database; stop the server first" in refused.stderr
    server.stop()
    wipe(server, postgres, s3)
    assert server.run("create-bucket").stdout == "bucket tracked: made\n"
    restored = server.run("restore", tmp_path / "monday")
    assert restored.returncode == 0, restored.stderr
    assert f"the database and {len(before)} artifacts" in restored.stdout
    assert objects(s3, "tracked") == before
    server.start()

    as_user(monkeypatch, server, "admin", server.password)
    assert {"600-steps", "800-steps"} <= set(tree_of(server))
    assert status(server, SEARCH, ("mary", "of long standing")) == 200
    assert status(server, SEARCH, ("mary", "of short standing")) == 401
