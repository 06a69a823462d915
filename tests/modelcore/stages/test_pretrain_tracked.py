"""A real training stage, in a process of its own, and a real MLflow server that is killed under it."""

import os
import subprocess
import sys

import pytest

from modelcore import delivery
from tests.modelcore.mlflow_server import Server

STEPS = 400
RECIPE = f"""
model: llama-nano
overrides: {{n_layers: 1, d_model: 16, n_heads: 2, n_kv_heads: 1, d_ff: 16}}
training:
  steps: {STEPS}
  batch_size: 4
  sequence_length: 16
  learning_rate: 3.0e-3
  warmup_steps: 2
  eval_every: 100
  eval_tokens: 50
  log_every: 1
"""
# The driver's part and the stage's, as `make pipeline` has them. It trains on when told to, at two places.
CODE = """
import sys
from pathlib import Path
from modelcore import delivery, logs, tracking
from modelcore.relay import Relay, RelayedRun
from modelcore.stages.pretrain import pretrain

folder = Path(sys.argv[1])
log, places = RelayedRun.log_metrics, iter((20, 220))
stop = next(places)

def log_and_stop(run, values, step=None):
    global stop
    log(run, values, step)
    if step is not None and step >= stop and "loss" in values:
        stop = next(places, 1 << 30)
        print(step, flush=True)
        sys.stdin.readline()

RelayedRun.log_metrics = log_and_stop
delivery.END_SECONDS = float(sys.argv[2])
logs.configure()
tracked = tracking.start_pipeline("night", {"steps": 400}, folder / "run")
with Relay(tracked.start_stage):
    pretrain(tokens=folder / "tokens", out=folder / "model", preset=str(folder / "recipe.yaml"))
    tracked.end()
tracked.deliver(complete=True)
print("done", tracked.run_id, flush=True)
"""


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server").start()
    yield server
    server.kill()


@pytest.fixture
def training(tmp_path, tokens, server, request):
    """Starts the stage; each call of the returned function lets it go on to its next place, or its end."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, tmp_path, getattr(request, "param", "60")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "MLFLOW_TRACKING_URI": server.url,
            "MLFLOW_EXPERIMENT_NAME": "killed",
            "KFP_RUN_ID": "night",
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.3",
        },
    )

    def go_on():
        if process.stdin is not None:
            process.stdin.write("\n")
            process.stdin.flush()
        return process.stdout.readline().split()

    yield process, go_on
    process.kill()
    process.communicate()


def check(server):
    """Every step of the curve, parameter, picture and status is on the server once."""
    import mlflow

    client = mlflow.MlflowClient(server.url)
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "killed"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert len(client.search_runs([experiment])) == 2
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    run = runs["pretrain recipe"]  # named after the recipe's file
    assert run.data.tags["mlflow.parentRunId"] == runs["night"].info.run_id
    for key, first in (("loss", 0), ("learning_rate", 1)):  # what a stage tells at its end is at step 0
        steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert sorted(steps) == list(range(first, STEPS + 1))
    system = [point.step for point in client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")]
    assert sorted(system) == list(range(len(system)))
    assert run.data.params["recipe.steps"] == str(STEPS)
    assert run.data.tags["cached"] == "false"
    assert {"loss_curve.png", "learning_rate.png"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    assert len(run.inputs.dataset_inputs) == 1


@pytest.mark.slow
def test_a_server_killed_and_started_again_has_every_step_once(training, server, tmp_path):
    process, go_on = training
    assert process.stdout.readline().split() == ["20"]
    server.kill()
    assert go_on() == ["220"]
    server.start()
    assert go_on()[0] == "done"
    assert process.wait() == 0
    assert not (tmp_path / "run" / delivery.FOLDER).exists()
    check(server)


@pytest.mark.slow
@pytest.mark.parametrize("training", ["0.5"], indirect=True)
def test_a_server_that_stays_dead_lets_training_end_and_gets_it_all_later(training, server, tmp_path):
    process, go_on = training
    assert process.stdout.readline().split() == ["20"]
    server.kill()
    assert go_on() == ["220"]
    assert go_on()[0] == "done"
    assert process.wait() == 0
    assert (tmp_path / "model" / "training.json").is_file()
    said = process.stderr.read()
    assert f"deliver them later with: modelcore deliver-tracking {tmp_path / 'run'}" in said
    server.start()
    command = [sys.executable, "-m", "modelcore.cli", "deliver-tracking", tmp_path / "run"]
    delivered = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(delivered.stdout.removeprefix("delivered=").split()[0]) > 380
    assert not (tmp_path / "run" / delivery.FOLDER).exists()
    check(server)
