"""`make local-pipeline` from an empty machine to the table, and through what can go wrong on the way."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.kind import __main__ as program
from pipelines.kind import credentials, inputs, submission
from pipelines.kind.cluster import NODE_IMAGE
from pipelines.kind.requirements import IMAGES, NEEDED_MIB


def in_order(parts, lines):
    """Whether each part is in a line, each in a later one than the part before."""
    rest = iter(lines)
    return all(any(part in line for line in rest) for part in parts)


def test_it_makes_the_cluster_installs_everything_runs_the_pipeline_and_prints_its_table(machine, start):
    status, out, err = start("up", "--name", "first", "steps=300")
    assert status == 0, err
    assert in_order(
        [
            "kind get clusters",
            f"kind create cluster --name aic-ai-poc-gpt --image {NODE_IMAGE}",
            f"kind load docker-image {' '.join(IMAGES)}",
            "cluster-scoped-resources?ref=2.17.0",
            "wait --for=condition=established",
            "manifests/overlays/free-tier/kfp",
            "manifests/overlays/free-tier",
            "create -f -",
            "-n kubeflow wait --for=condition=available",
            "rollout status statefulset/postgresql",
            "rollout status deployment/mlflow",
            "port-forward --address 127.0.0.1 service/mlflow",
            "service/ml-pipeline",
            "service/seaweedfs",
        ],
        machine.lines(""),
    )
    assert re.search(r"^evaluate +7\.0 s +123 MiB$", out, re.M)
    assert re.search(r"^whole run +5 min 12 s", out, re.M)
    assert re.search(r"^  tuned model +1\.852$", out, re.M)
    assert "make mlflow-ui" not in out  # that is for runs on this machine
    assert (machine.home.parent / "runs" / "kind" / "first.html").read_text() == "<p>the report"
    assert in_order(["validate_data succeeded", "train_tokenizer running", "train_tokenizer succ"], err.splitlines())


def test_the_run_is_created_by_kfps_own_command_line_with_the_parameters_given(machine):
    progress = program.Progress("first", ["steps=300", "corpus=s3://mine/texts", "heldout="])
    run_id = submission.submit(machine.kfp.address, progress.name, program._with_checkpoints(progress))
    run = machine.kfp.runs[run_id]
    assert run["display_name"] == "first"
    assert machine.kfp.experiments[run["experiment_id"]]["display_name"] == "aic-ai-poc-gpt"
    assert run["runtime_config"]["parameters"] == {
        "steps": 300,
        "corpus": "s3://mine/texts",
        "heldout": "",
        "checkpoint_uri": "s3://mlpipeline/checkpoints/first",  # so that pretraining goes on after a failure
    }


def test_what_lies_on_this_machine_is_brought_to_the_object_store_for_the_pods_to_read(machine, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("text of my own")
    (tmp_path / "pairs.jsonl").write_text("{}")
    places = inputs.check(["corpus=mine", "instructions=pairs.jsonl", "steps=3"])
    with machine.open_store():
        assert inputs.upload(places, "own") == [
            "corpus=s3://mlpipeline/inputs/own/corpus",
            "heldout=",  # the sample's evaluation text is for the sample
            "instructions=s3://mlpipeline/inputs/own/instructions/pairs.jsonl",
        ]
    found = machine.store.get_object(Bucket="mlpipeline", Key="inputs/own/corpus/a.txt")
    assert found["Body"].read() == b"text of my own"


def test_without_a_corpus_it_is_the_sample_and_what_lies_in_object_storage_stays_there():
    assert inputs.check([]) == {
        "corpus": "examples/austen/train",
        "heldout": "examples/austen/heldout",
        "instructions": "examples/austen/instructions.jsonl",
    }
    places = inputs.check(["corpus=s3://mine/texts", "instructions=s3://mine/pairs.jsonl"])
    assert inputs.upload(places, "any") == [f"{key}={place}" for key, place in places.items()]


def test_what_is_not_there_is_told_before_anything_is_made(machine, start):
    status, _, err = start("up", "corpus=nowhere")
    assert (status, err.count("\n")) == (1, 1)
    assert "corpus 'nowhere' does not exist" in err
    assert not machine.calls


@pytest.mark.usefixtures("kfp_command_left_out")
def test_a_second_time_takes_the_cluster_up_and_leaves_its_secrets_as_they_are(machine, start):
    machine.install_kfp()
    credentials.ensure_secrets()
    secrets = machine.world["secrets"]
    assert start("up", "--name", "second")[0] == 0
    assert not machine.lines("kind create cluster")
    assert len(machine.lines("create -f -")) == 4
    assert machine.world["secrets"] == secrets
    (run,) = machine.kfp.runs.values()
    assert run["runtime_config"]["parameters"]["heldout"] == "s3://mlpipeline/inputs/second/heldout"


def test_a_run_of_that_name_that_is_under_way_is_waited_for_and_not_made_again(machine, start):
    machine.install_kfp()
    made = machine.kfp.keep(machine.kfp.experiments, "experiment_id", {"display_name": "aic-ai-poc-gpt"})
    body = {"experiment_id": made["experiment_id"], "display_name": "long"}
    ended = machine.kfp.keep(machine.kfp.runs, "run_id", body | {"state": "FAILED"})
    running = machine.kfp.keep(machine.kfp.runs, "run_id", body | {"state": "RUNNING"})
    machine.deliver(running["run_id"])
    status, _, err = start("up", "--name", "long", "steps=5000")
    assert status == 0, err
    assert f"run long is under way; waiting for it ({running['run_id']})\n" in err
    assert machine.kfp.runs.keys() == {ended["run_id"], running["run_id"]}
    assert not machine.store.list_objects_v2(Bucket="mlpipeline", Prefix="inputs/long/").get("Contents")


@pytest.mark.parametrize(
    ("submitted", "kept"), [(True, "the run goes on in the cluster"), (False, "the cluster stays as it is")]
)
def test_what_goes_on_after_ctrl_c_is_said_with_the_whole_command_to_take_it_up(submitted, kept):
    progress = program.Progress("long", ["steps=5000", "corpus=my texts"])
    progress.submitted = submitted
    first, _ = progress.onward().splitlines()
    told, _, command = first.partition("; go on with: ")
    assert told == kept
    make, target, name, words = shlex.split(command)
    assert (make, target, name) == ("make", "local-pipeline", "NAME=long")
    assert shlex.split(words.removeprefix("ARGS=")) == progress.parameters


@pytest.mark.usefixtures("kfp_command_left_out")
def test_secrets_reach_kubectl_by_its_standard_input_and_no_line_of_what_is_said(machine, start):
    machine.kfp.steps, machine.kfp.message = ["FAILED"], "one of the stages failed"
    machine.change(pods={"kubeflow": [pod("broken", "Failed", ready=False)]})
    _, out, err = start("up")
    values = {value for place in machine.world["secrets"] for key, value in machine.secret(place).items()}
    drawn = {value for value in values if re.search(r"[0-9a-f]{32}", value)}
    assert len(drawn) == 5  # database, its address, administrator, cookies, user of the runs
    for value in drawn | {"secret-of-the-store"}:
        assert value not in out + err
        assert not machine.lines(value)
    assert machine.mlflow.users == {"pipelines": machine.secret("kubeflow/kfp-mlflow-credentials")["password"]}
    assert machine.mlflow.logins == {f"admin:{machine.secret('mlflow/mlflow')['MLFLOW_AUTH_ADMIN_PASSWORD']}"}


def test_a_run_that_kfp_refuses_is_an_error(machine):
    with pytest.raises(submission.ProgramError, match="unknown parameters"):
        submission.submit(machine.kfp.address, "first", ["stepz=3"])


def test_the_secrets_hold_what_mlflow_kfp_and_the_stages_read(machine):
    machine.install_kfp()
    credentials.ensure_secrets()
    server = machine.secret("mlflow/mlflow")
    password = machine.secret("mlflow/postgresql")["password"]
    assert server["MLFLOW_BACKEND_STORE_URI"] == f"postgresql://mlflow:{password}@postgresql.mlflow.svc:5432/mlflow"
    assert len(server["MLFLOW_AUTH_ADMIN_PASSWORD"]) >= 12
    assert server["AWS_SECRET_ACCESS_KEY"] == "secret-of-the-store"
    assert machine.secret("kubeflow/kfp-mlflow-credentials").keys() == {"username", "password"}
    assert machine.secret("kubeflow/aic-gpt-storage").keys() == {
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
    }


@pytest.mark.parametrize("name", ["docker", "kind", "kubectl", "git"])
def test_what_is_not_installed_is_named_with_where_to_get_it(machine, start, monkeypatch, name):
    monkeypatch.setattr("sysconfig.get_path", lambda scheme: "/nowhere")
    (machine.home.parent / "bin" / name).unlink()
    status, _, err = start("up")
    assert status == 1
    assert re.fullmatch(rf"error: not installed, and needed:\n  {name} .+\n", err)
    assert not machine.world["clusters"]


def test_an_engine_that_does_not_answer_is_one_line(machine, start):
    machine.change(fail={"docker info": "Cannot connect to the Docker daemon"})
    status, _, err = start("up")
    assert (status, err.count("\n")) == (1, 1)
    assert "start its engine, or join the group docker" in err


def test_images_that_are_not_built_are_named_before_anything_is_made(machine, start):
    machine.change(images=list(IMAGES[:2]))
    status, _, err = start("up")
    assert (status, err) == (1, f"error: not built: {IMAGES[2]}; build them first: make images\n")
    assert not machine.lines("create cluster")


def test_too_little_memory_is_told_before_a_cluster_is_made_and_only_then(machine, start, monkeypatch):
    from collections import namedtuple

    little = namedtuple("Memory", "available")((NEEDED_MIB - 1) * 2**20)
    monkeypatch.setattr("psutil.virtual_memory", lambda: little)
    monkeypatch.setattr("sys.platform", "linux")
    status, _, err = start("up")
    assert status == 1
    assert re.match(r"error: 6\.0 GiB of memory are free on this machine; the cluster needs 6 GiB: ", err)
    assert not machine.lines("create cluster")
    machine.change(clusters=["aic-ai-poc-gpt"], fail={"kind load": "no more"})  # its memory is taken already
    assert "failed (1): no more" in start("up")[2]


def test_elsewhere_than_on_linux_it_is_the_engines_memory_that_counts(machine, start, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    machine.change(docker_memory=2 * 2**30)
    status, _, err = start("up")
    assert status == 1
    assert "2.0 GiB of memory are given to Docker" in err


def test_a_name_that_leads_elsewhere_is_refused_at_once(machine, start):
    status, _, err = start("up", "--name", "../elsewhere")
    assert status == 1
    assert err.startswith("error: run name '../elsewhere' is not usable; ")
    assert not machine.calls


@pytest.mark.parametrize("word", ["stepz=3", "steps"])
def test_a_parameter_that_is_none_is_refused_at_once(machine, start, word):
    status, _, err = start("up", word)
    assert status == 1
    assert err.startswith(f"error: '{word}' is no parameter of the pipeline; give key=value")
    assert not machine.calls


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("steps=abc", "steps is 'abc'; give a whole number"),
        ("steps=1.5", "steps is '1.5'; give a whole number"),
        ("seed=", "seed is ''; give a whole number"),
        ("lora_alpha=much", "lora_alpha is 'much'; give a number"),
        ("heldout_fraction=nan", "heldout_fraction is 'nan'; give a number"),
    ],
)
def test_a_value_of_another_type_than_the_parameters_is_one_line(machine, start, word, said):
    assert start("up", word) == (1, "", f"error: {said}\n")
    assert not machine.calls


def test_a_text_that_looks_like_something_else_reaches_kfp_as_the_text_that_it_is(machine):
    words = ["model_name=2024", "text_field=true", 'user_symbols=["a"]', "tokenizer_algorithm=bpe", "lora_alpha=8"]
    run_id = submission.submit(machine.kfp.address, "first", words)
    assert machine.kfp.runs[run_id]["runtime_config"]["parameters"] == {
        "model_name": "2024",
        "text_field": "true",
        "user_symbols": '["a"]',
        "tokenizer_algorithm": "bpe",
        "lora_alpha": 8,
    }


@pytest.mark.usefixtures("kfp_command_left_out")
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Warning: not what you think", "get secret mlpipeline-minio-artifact -o json printed no JSON object"),
        ("[]", "get secret mlpipeline-minio-artifact -o json printed no JSON object"),
        ("{}", "the secret mlpipeline-minio-artifact in kubeflow has no accesskey and no secretkey"),
        ('{"data": {"accesskey": "!"}}', "mlpipeline-minio-artifact in kubeflow has no accesskey and no secretkey"),
        ('{"data": {"accesskey": "YQ=="}}', "the secret mlpipeline-minio-artifact in kubeflow has no secretkey"),
    ],
)
def test_what_kubectl_says_that_is_not_what_was_asked_for_is_one_line(machine, start, said, told):
    machine.install_kfp()
    machine.change(say={"get secret mlpipeline-minio-artifact": said, "get pods -o json": said})
    status, _, err = start("up", "--name", "first")
    assert status == 1
    assert told in err.splitlines()[-3]
    assert "Traceback" not in err


@pytest.mark.usefixtures("kfp_command_left_out")
@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("kind load docker-image", "no space left on device"),
        ("apply -k https://github.com", "could not resolve host: github.com"),
        ("wait --for=condition=available", "timed out waiting for the condition on deployments/ml-pipeline"),
        ("rollout status deployment/mlflow", "timed out waiting for the condition"),
        ("port-forward --address 127.0.0.1 service/mlflow", "unable to forward port because pod is not running"),
    ],
)
def test_what_fails_on_the_way_is_told_with_the_clusters_state_and_how_to_go_on(machine, start, step, message):
    machine.change(fail={step: message})
    status, _, err = start("up", "--name", "first")
    assert status == 1
    assert message in err.splitlines()[-3]
    assert "what is there stays; go on with: make local-pipeline NAME=first\n" in err
    assert "--- pods in kubeflow" in err
    assert not machine.kfp.runs


def test_a_cluster_that_cannot_be_made_is_not_searched_for_pods(machine, start):
    machine.change(fail={"kind create cluster": "failed to create cluster: port is already allocated"})
    status, _, err = start("up", "--name", "first")
    assert status == 1
    assert err.count("--- ") == 0
    assert "error: kind create cluster --name aic-ai-poc-gpt --image … failed (1): failed to create" in err


@pytest.mark.usefixtures("kfp_command_left_out")
def test_when_that_is_mended_the_same_command_goes_on_where_it_stopped(machine, start):
    machine.change(fail={"get secret postgresql -o json": "etcdserver: request timed out"})
    assert start("up", "--name", "first")[0] == 1
    machine.change(fail={})
    assert start("up", "--name", "first")[0] == 0
    assert len(machine.lines("kind create cluster")) == 1
    address = machine.secret("mlflow/mlflow")["MLFLOW_BACKEND_STORE_URI"]
    assert machine.secret("mlflow/postgresql")["password"] in address  # the one made before it failed


def pod(name, phase, ready):
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {"metadata": {"name": name}, "status": {"phase": phase, "conditions": conditions}}


@pytest.mark.usefixtures("kfp_command_left_out")
def test_when_the_run_fails_pods_events_and_logs_are_shown_and_the_status_tells(machine, start):
    machine.kfp.steps, machine.kfp.message = ["RUNNING", "FAILED"], "exit code 1"
    pods = [pod("good", "Running", True), pod("done", "Succeeded", False), pod("bad", "Failed", False)]
    machine.change(pods={"kubeflow": pods, "mlflow": [pod("waiting", "Pending", False)]})
    status, out, err = start("up", "--name", "first")
    assert (status, out) == (3, "")
    assert "error: the run first ended as FAILED: root, train-tokenizer; exit code 1\n" in err
    assert in_order(
        ["--- pods in kubeflow", "--- pod bad", "--- logs of bad", "--- events in kubeflow", "--- pod waiting"],
        err.splitlines(),
    )
    assert machine.lines("describe pod") == [
        "kubectl --context kind-aic-ai-poc-gpt -n kubeflow describe pod bad",
        "kubectl --context kind-aic-ai-poc-gpt -n mlflow describe pod waiting",
    ]
    assert err.endswith(
        "the cluster stays; when mended, go on with: make local-pipeline NAME=first\n"
        "take the cluster away with: make local-pipeline-down\n"
    )


def test_a_run_that_is_cancelled_is_not_waited_for_for_ever(machine):
    machine.kfp.steps = ["RUNNING", "CANCELING", "CANCELED"]
    run_id = machine.kfp.keep(machine.kfp.runs, "run_id", {"state": "PENDING"})["run_id"]
    assert submission.wait(lambda: contextlib.nullcontext(machine.kfp.address), run_id).state == "CANCELED"


def test_a_connection_that_breaks_while_waiting_is_opened_again(machine, monkeypatch):
    machine.kfp.steps = ["RUNNING", "RUNNING", "SUCCEEDED"]
    opened = []

    class Connection:
        def __enter__(self):
            opened.append(self)
            port = 1 if len(opened) == 2 else machine.kfp.port  # nobody listens at the second
            return f"http://127.0.0.1:{port}"

        def __exit__(self, *error):
            pass

    asked = submission._client

    def client(address):
        if address.endswith(":1"):
            raise ConnectionError("refused")
        found = asked(address)
        if len(opened) == 1:
            get, told = found.get_run, []
            found.get_run = lambda run_id: get(run_id) if not told and not told.append(1) else found.broken
        return found

    run_id = machine.kfp.keep(machine.kfp.runs, "run_id", {"state": "PENDING"})["run_id"]
    monkeypatch.setattr(submission, "_client", client)
    assert submission.wait(Connection, run_id).state == "SUCCEEDED"
    assert len(opened) == 3


def test_a_run_that_takes_too_long_is_no_longer_waited_for(machine, monkeypatch):
    monkeypatch.setattr(submission, "RUN_SECONDS", -1.0)
    run_id = machine.kfp.keep(machine.kfp.runs, "run_id", {"state": "PENDING"})["run_id"]
    with pytest.raises(submission.ProgramError, match=f"the run {run_id} has not ended in"):
        submission.wait(lambda: contextlib.nullcontext(machine.kfp.address), run_id)


def test_an_api_server_that_stays_away_ends_the_waiting(machine, monkeypatch):
    monkeypatch.setattr(submission, "LOST_SECONDS", 0.0)

    class Gone:
        def __enter__(self):
            raise ConnectionError("refused")

        def __exit__(self, *error):
            pass

    with pytest.raises(submission.ProgramError, match="KFP's API server is away: refused"):
        submission.wait(Gone, "id")


def test_a_cluster_that_was_stopped_is_told_apart_from_none(machine, start):
    machine.change(clusters=["aic-ai-poc-gpt"], fail={"get nodes": "connection refused"})
    status, _, err = start("up")
    assert status == 1
    assert "docker start aic-ai-poc-gpt-control-plane" in err


def test_down_takes_the_cluster_away_also_where_there_is_none(machine, start):
    machine.change(clusters=["aic-ai-poc-gpt", "another"])
    assert start("down")[0] == 0
    assert machine.world["clusters"] == ["another"]
    assert start("down")[0] == 0


def test_interrupted_before_the_run_it_says_that_the_cluster_stays(machine, start, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(program.installation, "install", interrupted)
    status, _, err = start("up", "--name", "first")
    assert status == 130
    assert "interrupted. the cluster stays as it is; go on with: make local-pipeline NAME=first\n" in err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_at_once_with_what_it_was_waiting_for(machine, number, status):
    machine.install_kfp()
    machine.change(hang=["wait --for=condition=available"])
    line = [sys.executable, "-m", "pipelines.kind", "up", "--name", "first"]
    environment = os.environ | {"PYTHONPATH": str(Path(program.__file__).parents[2])}
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        assert any(text == "hanging\n" for text in process.stderr)
        children = psutil.Process(process.pid).children()
        process.send_signal(number)  # to it alone, unlike a terminal's Ctrl-C
        said = process.stderr.read()
    assert process.returncode == status
    assert said == (
        "interrupted. the cluster stays as it is; go on with: make local-pipeline NAME=first\n"
        "take the cluster away with: make local-pipeline-down\n"
    )
    assert not [child for child in children if child.is_running()]
