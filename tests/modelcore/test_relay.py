"""Stages on this machine tell the pipeline's driver what to track; what arrives in MLflow is the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelcore import relay, tracking
from modelcore.atomic import disk_is_full
from modelcore.errors import InputError
from modelcore.relay import Relay, RelayedRun
from modelcore.stages.stage import Stage

EVERYTHING = """
import sys
from pathlib import Path
from modelcore.stages.stage import Stage

with Stage("demo", {"steps": 3, "note": None}) as stage:
    stage.run.log_params({"steps": 4, "rate": 0.5})
    stage.run.log_metrics({"loss": 2.0, "broken": float("nan")}, step=1)
    stage.run.log_metrics({"loss": 1.5}, step=2)
    stage.run.set_tags({"gate": "open"})
    stage.run.log_text("Grüße", "texts/hello.txt")
    stage.run.log_chart("curve.png", "loss_curve", {"step": [1, 2], "loss": [2.0, 1.5]}, {"step": []})
    stage.run.log_path(Path(sys.argv[1]), "docs")
    stage.run.log_dataset(name="novels", source="s3://b/novels", digest="ab" * 32, rows=3, context="training")
    print(stage.run.run_id)
"""


def child(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, **options)


def told(client, run_id):
    """All that is in a run but its times."""
    run = client.get_run(run_id)
    artifacts = {item.path for folder in (None, "texts", "docs") for item in client.list_artifacts(run_id, folder)}
    timed = ("stage_seconds", "work_seconds", "peak_memory_mib")
    metrics = {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]
        for key in run.data.metrics
        if key not in timed and not key.startswith("system/")
    }
    (dataset,) = run.inputs.dataset_inputs
    tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
    return (
        run.info.status,
        run.data.params,
        metrics,
        tags,
        artifacts,
        dict(dataset.dataset),
    )


def test_what_a_stage_relays_is_what_it_would_have_tracked_itself_without_loading_mlflow(
    mlflow_client, monkeypatch, tmp_path
):
    monkeypatch.setenv("KFP_RUN_ID", "night")
    (tmp_path / "index.html").write_text("<p>")
    alone, _ = child(EVERYTHING, "index.html", cwd=tmp_path).communicate()
    with Relay():
        process = child(
            EVERYTHING + "assert not {'mlflow', 'matplotlib', 'pandas'} & sys.modules.keys()",
            "index.html",
            cwd=tmp_path,
        )
        relayed, _ = process.communicate()
        assert process.returncode == 0
    assert relay.ADDRESS not in os.environ
    assert alone != relayed
    runs = [told(mlflow_client, run_id.strip()) for run_id in (alone, relayed)]
    assert runs[0] == runs[1]
    assert {"texts/hello.txt", "curve.png", "docs/index.html"} <= runs[0][4]
    assert runs[0][:2] == ("FINISHED", {"steps": "3", "note": "None", "rate": "0.5"})


def test_stages_may_run_side_by_side(mlflow_client):
    with Relay():
        first, second = tracking.start_stage("first"), tracking.start_stage("second")
        for run in (first, second):
            run.log_metrics({"loss": 1.0})
        second.end(failure=tracking.INTERRUPTED)
        first.end()
    assert mlflow_client.get_run(first.run_id).info.status == "FINISHED"
    assert mlflow_client.get_run(second.run_id).info.status == "KILLED"


def test_a_stage_that_is_killed_leaves_a_failed_run(mlflow_client):
    code = "from modelcore import tracking; print(tracking.start_stage('demo').run_id, flush=True); input()"
    with Relay():
        process = child(code, stdin=subprocess.PIPE)
        run_id = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
    run = mlflow_client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert "ended without a word" in run.data.tags["failure"]


def test_what_mlflow_refuses_is_one_line_in_the_stage(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'file'}")
    with (
        Relay(),
        pytest.raises(InputError, match=r"MLflow at sqlite:.*file .* cannot be used") as caught,
        Stage("a", {}),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_as_one(small_disk, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small_disk.folder}/mlflow.db")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1000")
    tracking.ensure_experiment(small_disk.folder / "artifacts")
    with Relay():
        run = tracking.start_stage("demo")
        small_disk.fill(room=0)
        with pytest.raises(OSError, match="No space left on device") as caught:
            run.log_text("x" * 10_000, "a.txt")
        assert disk_is_full(caught.value)
        (small_disk.folder / "filler").unlink()
        run.log_text("x" * 10_000, "a.txt")
        run.end()


def test_without_the_driver_a_stage_ends_with_one_line(mlflow_client, tmp_path):
    with pytest.raises(InputError, match=r"driver at .*nowhere \(MODELCORE_RELAY\) cannot be reached"):
        RelayedRun(str(tmp_path / "nowhere"), "demo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    answers = threading.Thread(target=lambda: listener.accept()[0].close())
    answers.start()
    with pytest.raises(InputError, match="process that drives the pipeline is gone"):
        RelayedRun(str(tmp_path / "s"), "demo")
    answers.join()
    listener.close()


def test_only_its_user_can_reach_the_driver():
    with Relay():
        assert Path(os.environ[relay.ADDRESS]).parent.stat().st_mode & 0o077 == 0


def test_a_message_can_call_nothing_but_a_runs_methods(mlflow_client):
    with Relay():
        run = tracking.start_stage("demo")
        with pytest.raises(InputError, match="'__init__' is no method of a run"):
            run._tell("__init__", run_id="x")
        run.end()


def test_a_message_that_was_cut_off_is_none(mlflow_client, capfd):
    with Relay(), socket.socket(socket.AF_UNIX) as stage:
        stage.connect(os.environ[relay.ADDRESS])
        stage.sendall(b'{"method": "start_stage", "arguments": {"name": "pretrain"}}\n')
        run_id = json.loads(stage.recv(4096))["run_id"]
        stage.sendall(b'{"meth')
    assert mlflow_client.get_run(run_id).info.status == "FAILED"
    assert "Traceback" not in capfd.readouterr().err


FROM_A_CONTAINER = """
import sys
from modelcore import registry

assert registry.find_alias("far", "champion") is None
registry.set_alias("near", "champion", 1)
found = registry.find_alias("near", "champion")
assert found == registry.find_version("near", {"a": "b"}), found
print(found.version, found.tags)
assert "mlflow" not in sys.modules
"""


def test_a_stage_that_cannot_reach_mlflow_has_the_driver_ask_the_registry(mlflow_client):
    mlflow_client.create_registered_model("near")
    mlflow_client.create_model_version("near", "file:///none", tags={"a": "b"})
    with Relay():
        process = child(FROM_A_CONTAINER, env={**os.environ, "MLFLOW_TRACKING_URI": relay.URI})
        out, _ = process.communicate()
    assert (process.returncode, out) == (0, "1 {'a': 'b'}\n")
    assert mlflow_client.get_model_version_by_alias("near", "champion").version == 1


@pytest.mark.parametrize(("away", "kind"), [(True, "AwayError"), (False, "InputError")])
def test_why_the_registry_did_not_answer_is_told_to_the_stage(mlflow_client, monkeypatch, away, kind):
    from modelcore import registry

    def fail(**_):
        raise (registry.AwayError if away else InputError)("no answer from the registry")

    monkeypatch.setitem(registry.REMOTE, "find_alias", fail)
    code = """
from modelcore import registry
try:
    registry.find_alias("near", "champion")
except Exception as error:
    print(type(error).__name__, error)
"""
    with Relay():
        out, _ = child(code, env={**os.environ, "MLFLOW_TRACKING_URI": relay.URI}).communicate()
    assert out == f"{kind} no answer from the registry\n"


def test_a_stage_can_have_nothing_else_called(mlflow_client, monkeypatch):
    with Relay():
        with pytest.raises(InputError, match="'check_name' is no function of the registry"):
            relay.ask_registry("check_name", {"name": "a"})
