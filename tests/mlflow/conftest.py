"""One PostgreSQL, one S3 and one tracking server for all tests here: they take seconds to start."""

import io
import json
import os
from dataclasses import dataclass

import pytest

from modelcore import tracking
from modelcore.stages.stage import Stage
from tests.servers.postgres import Postgres
from tests.servers.seaweedfs import S3Server, seaweedfs
from tests.servers.tracking import TrackingServer
from tracking_server.__main__ import main

EXPERIMENT = "small-models"
SAMPLES = "It is a truth universally acknowledged …\n"


@pytest.fixture(scope="session")
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3(tmp_path_factory) -> S3Server:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


def s3_settings(s3):
    """What the tracking server is told of the S3 server."""
    settings = s3.environment
    return settings | {"MLFLOW_S3_ENDPOINT_URL": settings.pop("AWS_ENDPOINT_URL")}


@pytest.fixture(scope="session")
def new_server(postgres, s3, tmp_path_factory):
    """Makes a server with a database and a bucket of its own, which are new and empty; it is not started."""

    def make(name, **settings):
        database = postgres.make_database(name)
        return TrackingServer(
            database, f"s3://{name}/artifacts", s3_settings(s3), tmp_path_factory.mktemp(name), **settings
        )

    return make


@dataclass(frozen=True)
class Tracked:
    """A server that runs, and the ids of two pipeline runs tracked there, by their names."""

    server: TrackingServer
    runs: dict[str, str]


@pytest.fixture(scope="session")
def tracked(new_server, tmp_path_factory):
    server = new_server("tracked")
    made = server.run("create-bucket")
    assert made.returncode == 0, made.stderr
    with server:
        picture = tmp_path_factory.mktemp("pictures") / "samples.txt"
        picture.write_text(SAMPLES)
        runs = {}
        with pytest.MonkeyPatch.context() as patch:  # taken back before any other test's fixtures look
            as_user(patch, server, "admin", server.password)
            patch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
            for name, steps, rate in (("600-steps", 600, 0.02), ("800-steps", 800, 0.01)):
                runs[name] = track_pipeline(patch, name, steps, rate, picture)
        yield Tracked(server, runs)


@pytest.fixture
def operate(monkeypatch):
    """Runs a command of the operator's in this process, which has MLflow loaded; returns what it said in refusing."""

    def run(server, *arguments, typed=""):
        for name, value in server.environment.items():
            if name.startswith("MLFLOW_"):
                monkeypatch.setenv(name, value)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        try:
            main(arguments)
        except SystemExit as end:
            return end.code
        return None

    return run


def as_user(patch, server, name, password):
    """Lets modelcore and MLflow's client here be a user of ``server``, who has no keys for S3."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(variable)
    patch.setenv("MLFLOW_TRACKING_URI", server.uri)
    patch.setenv("MLFLOW_TRACKING_USERNAME", name)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    import mlflow

    mlflow.set_tracking_uri(None)


def track_pipeline(patch, name, steps, rate, file):
    """Tracks a pipeline of two stages as the pipeline itself does, and gives its run's id."""
    patch.setenv("KFP_RUN_ID", f"id-of-{name}")
    patch.setenv("KFP_RUN_NAME", name)
    parameters = {"steps": steps, "seed": 1, "learning_rate": rate}
    pipeline = tracking.start_pipeline(f"id-of-{name}", parameters)
    with Stage("pretrain", parameters) as stage:
        for step in range(0, steps, 100):
            stage.run.log_metrics({"loss": 9.0 - step / 100}, step=step)
        stage.run.log_path(file, "samples")
        stage.results["heldout_bits_per_byte"] = 3 - steps / 1000
    with Stage("evaluate", parameters) as stage:
        stage.run.log_text(json.dumps({"steps": steps}), "report.json")
    pipeline.log_metrics({"heldout_bits_per_byte": 3 - steps / 1000, "peak_memory_mib": 200.0 + steps})
    pipeline.end()
    pipeline.deliver(True)
    return pipeline.run_id


def objects(s3, bucket):
    """Every object's content and type."""
    client = s3.client()
    found = {}
    for listed in client.list_objects_v2(Bucket=bucket)["Contents"]:
        answer = client.get_object(Bucket=bucket, Key=listed["Key"])
        found[listed["Key"]] = (answer["Body"].read(), answer["ContentType"])
    return found
