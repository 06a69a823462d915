"""Every stage's figures end up in one MLflow tree, wherever the stage runs."""

import subprocess
import sys

import pytest

from modelcore import tracking
from modelcore.errors import InputError
from modelcore.stages.stage import Stage


def runs_of(client, monkeypatch):
    import os

    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def test_without_a_tracking_server_nothing_is_tracked_and_mlflow_is_not_imported():
    code = (
        "import sys\n"
        "from modelcore.stages.stage import Stage\n"
        "with Stage('demo', {'k': 1}) as stage:\n"
        "    stage.run.log_metrics({'loss': 1.0}, step=1)\n"
        "assert stage.run.run_id is None\n"
        "sys.exit('mlflow' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_stage_on_the_command_line_is_a_run_of_its_own(mlflow_client, monkeypatch):
    with Stage("demo", {"k": 1}) as stage:
        stage.run.log_metrics({"loss": 2.0}, step=1)
        stage.run.log_metrics({"loss": 1.5, "broken": float("nan")}, step=2)
        stage.results["final"] = 7
    (run,) = runs_of(mlflow_client, monkeypatch)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "demo")
    assert run.data.params == {"k": "1"}
    assert [(m.step, m.value) for m in mlflow_client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 2.0),
        (2, 1.5),
    ]
    assert run.data.metrics["final"] == 7
    assert run.data.metrics["stage_seconds"] > 0
    assert "broken" not in run.data.metrics
    assert "mlflow.parentRunId" not in run.data.tags


def test_stages_of_one_pipeline_run_are_children_of_one_parent(mlflow_client, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "abc-1")
    monkeypatch.setenv("KFP_RUN_NAME", "monday")
    for name in ("first", "second"):
        with Stage(name, {}):
            pass
    tracking.start_pipeline("abc-1", {}).end()
    runs = {run.info.run_name: run for run in runs_of(mlflow_client, monkeypatch)}
    assert runs.keys() == {"monday", "first", "second"}
    for name in ("first", "second"):
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["monday"].info.run_id
        assert runs[name].data.tags["kfp.pipeline_run_id"] == "abc-1"
    assert runs["monday"].info.status == "FINISHED"


def test_a_pipeline_taken_up_again_is_running_and_what_its_dead_driver_left_is_marked_killed(
    mlflow_client, monkeypatch
):
    monkeypatch.setenv("KFP_RUN_ID", "night")
    tracking.start_pipeline("night", {}).end(failure="the machine went down")
    dead = tracking.start_stage("pretrain")
    again = tracking.start_pipeline("night", {})
    parent = mlflow_client.get_run(again.run_id)
    assert parent.info.status == "RUNNING"
    assert "failure" not in parent.data.tags
    assert mlflow_client.get_run(dead.run_id).info.status == "KILLED"
    dead._monitor.finish()
    again.end()
    assert mlflow_client.get_run(again.run_id).info.status == "FINISHED"


def test_a_run_that_kfp_made_is_used_and_left_for_kfp_to_end(mlflow_client, monkeypatch):
    import os

    experiment = mlflow_client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    made = mlflow_client.create_run(experiment.experiment_id)
    mlflow_client.log_param(made.info.run_id, "seed", "5")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with Stage("demo", {"seed": 6, "k": 1}) as stage:
        assert stage.run.run_id == made.info.run_id
    run = mlflow_client.get_run(made.info.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params == {"seed": "5", "k": "1"}, "a parameter that the launcher logged keeps its value"


def test_a_failed_stage_is_marked_failed_with_its_reason(mlflow_client, monkeypatch):
    with pytest.raises(InputError), Stage("demo", {}):
        raise InputError("the corpus is empty")
    (run,) = runs_of(mlflow_client, monkeypatch)
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"] == "InputError: the corpus is empty"


def test_texts_pictures_folders_and_data_sets_arrive(mlflow_client, monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.html").write_text("<p>")
    with Stage("demo", {}) as stage:
        stage.run.log_text("hello", "samples.txt")
        stage.run.log_chart("pictures/lengths.png", "token_lengths", {"length": [1, 2], "count": [9, 4]})
        stage.run.log_path(tmp_path / "docs", "docs")
        stage.run.log_dataset(name="novels", source="s3://b/novels", digest="ab" * 32, rows=3, context="training")
    (run,) = runs_of(mlflow_client, monkeypatch)
    names = {
        item.path
        for folder in (None, "pictures", "docs")
        for item in mlflow_client.list_artifacts(run.info.run_id, folder)
    }
    assert {"samples.txt", "pictures/lengths.png", "docs/index.html"} <= names
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == ("ab" * 32)[:36]
    assert "ab" * 32 in dataset.dataset.profile


def test_system_metrics_are_sampled_while_the_stage_runs(mlflow_client, monkeypatch):
    import threading

    with Stage("demo", {}) as stage:
        sampled = threading.Event()
        log = stage.run.log_metrics

        def record(*arguments, **options):
            log(*arguments, **options)
            sampled.set()

        stage.run.log_metrics = record
        assert sampled.wait(30)
    (run,) = runs_of(mlflow_client, monkeypatch)
    assert "system/cpu_utilization_percentage" in run.data.metrics


def test_a_pipeline_that_goes_on_with_other_parameters_is_tracked_anew(mlflow_client, monkeypatch):
    """MLflow never changes a parameter: in the old run the old value would stand beside the new figures."""
    for rank in (8, 8, 4):
        tracking.start_pipeline("night", {"lora_rank": rank}).end(failure="no space left")
    dead = tracking.start_pipeline("night", {"lora_rank": 2})
    again = tracking.start_pipeline("night", {"lora_rank": 1})
    again.end(failure=tracking.INTERRUPTED)
    dead._monitor.finish()
    runs = runs_of(mlflow_client, monkeypatch)
    ended = {run.data.params["lora_rank"]: (run.info.status, run.data.tags.get("failure")) for run in runs}
    failed, killed = ("FAILED", "no space left"), ("KILLED", None)
    assert ended == {"8": failed, "4": failed, "2": killed, "1": ("KILLED", "interrupted")}
    assert len(runs) == 4
    assert again.run_id == runs[-1].info.run_id


@pytest.mark.parametrize("uri", ["sqlite:///{file}/mlflow.db", "sqlite:///{file}", "nonsense://host"])
def test_a_tracking_server_that_cannot_be_used_is_one_line_that_names_it(uri, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no database " * 100)
    uri = uri.format(file=tmp_path / "file")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=f"MLflow at {uri} .* cannot be used") as caught, Stage("demo", {}):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("password", "shown"), [("hidden/word", "http://127.0.0.1:1"), ("12/hidden", "http://…@127.0.0.1:1")]
)
def test_an_address_whose_password_reads_as_a_port_or_a_path_is_told_without_it(password, shown, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://bob:{password}@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError) as caught, Stage("demo", {}):
        pass
    assert str(caught.value).startswith(f'MLFLOW_TRACKING_URI is "{shown}"; give http://host:port')
    assert "\n" not in str(caught.value)


def test_a_database_that_could_not_be_completed_is_not_left_behind(small_disk, monkeypatch):
    """MLflow cannot use one with half of its tables, and would refuse it for ever after."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small_disk.folder}/mlflow.db")
    small_disk.fill(room=400 << 10)
    with pytest.raises(Exception, match="disk is full"):
        tracking.ensure_experiment(small_disk.folder / "artifacts")
    assert [path.name for path in small_disk.folder.iterdir()] == ["filler"]
    (small_disk.folder / "filler").unlink()
    tracking.ensure_experiment(small_disk.folder / "artifacts")
    assert [path.name for path in small_disk.folder.iterdir()] == ["mlflow.db"]
    tracking.start_pipeline("night", {"steps": 1}).end()
