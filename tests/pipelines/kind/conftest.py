"""A machine with stand-ins for docker, kind and kubectl, and real servers behind the ports that they forward.

KFP's API server is played over HTTP as its client package, kfp_server_api, defines it: what it is given must be made of
the client's own models, fields, types and all, and what it gives back is.
"""

import base64
import contextlib
import datetime
import json
import os
import sys
import threading
import traceback
import uuid
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import kfp_server_api
import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from moto.server import ThreadedMotoServer

from modelcore.stages.stage import StageSummary
from pipelines.kind import __main__ as program
from pipelines.kind import outcome, submission
from pipelines.kind.requirements import IMAGES, NEEDED_MIB
from pipelines.run_folder import STAGES

STORE_KEY = {"accesskey": "key-of-the-store", "secretkey": "secret-of-the-store"}
API = "/apis/v2beta1/"


def conforms(value, kind):
    """Whether a JSON value is of a type as kfp_server_api writes types: a model's name, list[...], str ..."""
    if value is None or kind == "object":
        return True
    if kind.startswith("list["):
        return isinstance(value, list) and all(conforms(item, kind[5:-1]) for item in value)
    if kind.startswith("dict("):
        inner = kind[5:-1].split(", ", 1)[1]
        return isinstance(value, dict) and all(conforms(item, inner) for item in value.values())
    if kind == "datetime":
        return bool(datetime.datetime.fromisoformat(value))
    if kind in ("str", "int", "bool", "float"):
        return isinstance(value, {"str": str, "int": int, "bool": bool, "float": float}[kind])
    model = getattr(kfp_server_api, kind)
    if not model.openapi_types:  # an enumeration
        return value in model.allowable_values
    fields = {model.attribute_map[name]: inner for name, inner in model.openapi_types.items()}
    return isinstance(value, dict) and all(key in fields and conforms(value[key], fields[key]) for key in value)


class Server:
    """An HTTP server in a thread, for as long as the block runs; subclasses answer with (status, JSON)."""

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                try:
                    status, said = outer.answer(self.command, self.path, body, self.headers)
                except Exception as error:  # a fault of what was asked
                    status, said = 500, {"code": 13, "message": repr(error)}
                    traceback.print_exc()
                text = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PATCH = answer  # noqa: N815

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()


class KFP(Server):
    """KFP's API server, v2beta1; each look at a run takes it one step further.

    Attributes:
        steps: The states a run goes through, one a look.
        experiments: By id.
        runs: By id.
        on_run: Called with the id of each run that is made.
    """

    def __init__(self):
        self.steps = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.message = None
        self.experiments, self.runs, self.looks = {}, {}, {}
        self.on_run = lambda run_id: None

    def answer(self, method, path, body, headers):
        url = urlsplit(path)
        match method, url.path.removeprefix(API).split("/"):
            case "GET", ["healthz"]:
                return 200, {"multi_user": False, "pipeline_store": "database"}
            case "GET", ["experiments"]:
                (chosen,) = json.loads(parse_qs(url.query)["filter"][0])["predicates"]
                assert (chosen["operation"], chosen["key"]) == (1, "display_name")  # 1 is EQUALS
                found = [e for e in self.experiments.values() if e["display_name"] == chosen["stringValue"]]
                return 200, {"experiments": found} if found else {}
            case "GET", ["experiments", experiment]:
                return 200, self.experiments[experiment]
            case "POST", ["experiments"]:
                assert conforms(body, "V2beta1Experiment")
                return 200, self.keep(self.experiments, "experiment_id", body)
            case "GET", ["runs"]:
                wanted = parse_qs(url.query)["experiment_id"]
                found = [run for run in self.runs.values() if [run["experiment_id"]] == wanted]
                return 200, {"runs": found, "total_size": len(found)} if found else {}
            case "POST", ["runs"]:
                return self.create(body)
            case "GET", ["runs", run_id] if run_id in self.runs:
                return 200, self.look(run_id)
        return 404, {"code": 5, "message": f"{method} {path} not found"}

    def create(self, body):
        assert conforms(body, "V2beta1Run")
        assert body["experiment_id"] in self.experiments
        spec = pipeline_spec_pb2.PipelineSpec()
        json_format.ParseDict(body["pipeline_spec"]["pipeline_spec"], spec)
        assert body["pipeline_spec"]["platform_spec"]["platforms"].keys() == {"kubernetes"}
        if unknown := body["runtime_config"]["parameters"].keys() - spec.root.input_definitions.parameters.keys():
            return 400, {"code": 3, "message": f"unknown parameters {sorted(unknown)}"}
        run = self.keep(self.runs, "run_id", body | {"state": "PENDING"})
        self.on_run(run["run_id"])
        return 200, run

    def look(self, run_id):
        state = self.steps[min(self.looks.get(run_id, 0), len(self.steps) - 1)]
        self.looks[run_id] = self.looks.get(run_id, 0) + 1
        run = self.runs[run_id]
        run["state"] = state
        tasks = [{"display_name": "root", "state": state}, {"display_name": "validate-data", "state": "SUCCEEDED"}]
        run["run_details"] = {"task_details": [*tasks, {"display_name": "train-tokenizer", "state": state}]}
        if state in submission.ENDED:
            created = datetime.datetime.fromisoformat(run["created_at"])
            run["finished_at"] = (created + datetime.timedelta(seconds=312)).isoformat()
        if state == "FAILED":
            run["error"] = {"code": 9, "message": self.message}
        assert conforms(run, "V2beta1Run")
        return run

    def keep(self, where, key, body):
        now = datetime.datetime.now(datetime.UTC).isoformat()
        entry = {**body, key: str(uuid.uuid4()), "created_at": now}
        where[entry[key]] = entry
        return entry


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
