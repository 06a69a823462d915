"""A machine with stand-ins for docker, kind and kubectl, and real servers behind the ports that they forward."""

import base64
import contextlib
import json
import os
import sys
from collections import namedtuple
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from modelcore.stages.stage import StageSummary
from pipelines.kind import __main__ as program
from pipelines.kind import outcome, submission
from pipelines.kind.requirements import IMAGES, NEEDED_MIB
from pipelines.run_folder import STAGES
from tests.servers.kfp import KFP, Server

STORE_KEY = {"accesskey": "key-of-the-store", "secretkey": "secret-of-the-store"}


class MLflow(Server):
    """What is asked of MLflow's server while it is set up: users."""

    def __init__(self):
        self.users, self.logins = {}, set()

    def answer(self, method, path, body, headers):
        scheme, _, login = headers["Authorization"].partition(" ")
        assert scheme == "Basic"
        self.logins.add(base64.b64decode(login).decode())
        known = body["username"] in self.users
        if (method, path) == ("POST", "/api/2.0/mlflow/users/create") and known:
            return 400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "User already exists."}
        assert (method, path) == ("POST", "/api/2.0/mlflow/users/create") or (known and method == "PATCH")
        self.users[body["username"]] = body["password"]
        return 200, {}


class Machine:
    """What the stand-ins made of the calls, and what they are to do.

    Attributes:
        kfp: KFP's API server.
        mlflow: MLflow's server.
        home: The stand-ins' folder.
    """

    def __init__(self, home, kfp, mlflow, store):
        self.home, self.kfp, self.mlflow, self.store = home, kfp, mlflow, store
        self.kfp.on_run = self.deliver

    @property
    def world(self):
        return json.loads((self.home / "world.json").read_text())

    def change(self, **what):
        (self.home / "world.json").write_text(json.dumps(self.world | what))

    @property
    def calls(self):
        file = self.home / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def lines(self, *parts):
        """The calls, in order, that hold one of these parts."""
        return [call["line"] for call in self.calls if any(part in call["line"] for part in parts)]

    def install_kfp(self):
        """Takes the world to where KFP and MLflow are installed, and no secret is made but KFP's own."""
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in STORE_KEY.items()}
        secrets = {"kubeflow/mlpipeline-minio-artifact": encoded}
        self.change(clusters=["aic-ai-poc-gpt"], namespaces=["kubeflow", "mlflow"], secrets=secrets)

    @contextlib.contextmanager
    def open_store(self):
        """Makes the object store the one that s3:// means here."""
        outcome.open_store(f"http://127.0.0.1:{self.world['ports']['seaweedfs']}", tuple(STORE_KEY.values()))
        yield

    def secret(self, place):
        return {key: base64.b64decode(value).decode() for key, value in self.world["secrets"][place].items()}

    def deliver(self, run_id):
        """Puts into the object store what the stages of a run leave there."""
        for stage in STAGES:
            summary = StageSummary(stage, seconds=7.0, peak_memory_mib=123.0, work_seconds=5.0)
            if stage == "evaluate":
                columns = {"name": ["tuned model"], "bits_per_byte": [1.852], "is_model": [True]}
                summary.series["bits_per_byte"] = columns
            summary.save(self.home / "summary.json")
            task = f"v2/artifacts/aic-ai-poc-gpt/{run_id}/{stage.replace('_', '-')}"
            self.store.upload_file(str(self.home / "summary.json"), "mlpipeline", f"{task}/1-whole/summary")
        # a first execution of the last stage was lost before it had written anything
        self.store.put_object(Bucket="mlpipeline", Key=f"{task}/0-lost/executor-logs", Body=b"")
        self.store.put_object(Bucket="mlpipeline", Key=f"{task}/1-whole/page", Body=b"<p>the report")


@pytest.fixture(scope="session")
def object_store():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    key = {"aws_access_key_id": STORE_KEY["accesskey"], "aws_secret_access_key": STORE_KEY["secretkey"]}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **key)
    client.create_bucket(Bucket="mlpipeline")
    yield client, port
    server.stop()


@pytest.fixture
def machine(tmp_path, monkeypatch, object_store):
    """A machine where everything is installed, and no cluster yet."""
    home, programs = tmp_path / "stand-in", tmp_path / "bin"
    home.mkdir()
    programs.mkdir()
    text = (Path(__file__).parent / "stand_in.py").read_text()
    for name in ("docker", "kind", "kubectl", "git"):
        (programs / name).write_text(f"#!{sys.executable} -S\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("STAND_IN", str(home))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("AWS_") or "_proxy" in name.lower()]:
        monkeypatch.delenv(name)
    for name in ("URL", "URL_S3"):  # so that they are as before afterwards
        monkeypatch.setenv(f"AWS_ENDPOINT_{name}", "http://127.0.0.1:1")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION", "SESSION_TOKEN"):
        monkeypatch.setenv(f"AWS_{name}", "the user's own")
    monkeypatch.setattr("psutil.virtual_memory", lambda: namedtuple("Memory", "available")(NEEDED_MIB * 2**20))
    monkeypatch.setattr(submission, "_FIRST_PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)
    for part in ("train/novel.txt", "heldout/novel.txt", "instructions.jsonl"):
        file = tmp_path / "examples" / "austen" / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a novel")
    store, store_port = object_store
    with KFP() as kfp, MLflow() as mlflow:
        world = {
            "clusters": [],
            "images": list(IMAGES),
            "namespaces": [],
            "secrets": {},
            "pods": {},
            "fail": {},
            "say": {},
            "hang": [],
            "store_key": STORE_KEY,
            "docker_memory": 0,
            "ports": {"ml-pipeline": kfp.port, "mlflow": mlflow.port, "seaweedfs": store_port},
        }
        (home / "world.json").write_text(json.dumps(world))
        yield Machine(home, kfp, mlflow, store)


@pytest.fixture
def kfp_command_left_out(machine, monkeypatch):
    """Runs are made without kfp's command line, which takes seconds to start; for tests of something else."""

    def submit(address, name, parameters):
        runtime = {"parameters": dict(word.split("=", 1) for word in parameters)}
        run = {"display_name": name, "state": "PENDING", "runtime_config": runtime}
        run = machine.kfp.keep(machine.kfp.runs, "run_id", run)
        machine.kfp.on_run(run["run_id"])
        return run["run_id"]

    monkeypatch.setattr(submission, "submit", submit)


@pytest.fixture
def start(machine, capfd):
    """Runs the program; returns its status, and what it printed to standard output and standard error."""

    def start(*words):
        status = program.main(list(words))
        return status, *capfd.readouterr()

    return start
