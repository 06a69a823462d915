"""Whatever the local runner is doing when it is told to stop, it says one line and can go on later."""

import json
import os
import signal

import pytest

from modelcore import mlflow_runs
from pipelines import local, run_folder


@pytest.fixture
def driver(tmp_path, mlflow_store, monkeypatch):
    """``driver(place)`` runs main with a pipeline that does nothing, and sends itself a signal at a place."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store[0])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setattr(local, "_load_pipeline", lambda: None)
    monkeypatch.setattr(local, "_parser", lambda pipeline: _Parser())
    monkeypatch.setattr(local.LocalRun, "_execute", lambda self, pipeline, log: None)
    monkeypatch.setattr(run_folder, "collect", lambda root, folder: (folder / "report").mkdir(exist_ok=True) or [])
    monkeypatch.setattr(local, "_headline", lambda summaries: {})
    monkeypatch.setattr(local, "_print_table", lambda summaries, folder, seconds: print("table"))

    class _Parser:
        def parse_args(self, arguments):
            from argparse import Namespace

            given = {"corpus": str(tmp_path), "steps": 7} if arguments else {"corpus": "sample", "steps": 0}
            return Namespace(
                runs=str(tmp_path / "runs"),
                name="night",
                heldout="",
                instructions=__file__,
                preset="llama-nano",
                publish="",
                sweep=False,
                **given,
            )

    def run(place=None, number=signal.SIGINT):
        with pytest.MonkeyPatch.context() as patch:
            if place is not None:
                where, name = place
                original = getattr(where, name)

                def stopped(*arguments, **named):
                    os.kill(os.getpid(), number)
                    return original(*arguments, **named)

                patch.setattr(where, name, stopped)
            return local.main(["--steps", "7"])

    return run


PLACES = {
    "while the pipeline is loaded": (local, "_load_pipeline"),
    "while the folder is looked at": (run_folder, "check"),
    "while MLflow is made ready": (local, "_prepare_environment"),
    "while stages run": (local.LocalRun, "_execute"),
    "while outputs are collected": (run_folder, "collect"),
    "while the report is tracked": (mlflow_runs.MLflowRun, "log_path"),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_with_one_line_and_the_signals_status_and_goes_on_later(
    driver, tmp_path, capsys, place, number, status
):
    assert driver(place, number) == status
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if not line.startswith(("run night: outputs under ", "note: "))]
    assert line.startswith("interrupted")
    begun = (tmp_path / "runs" / "night").exists()
    assert (f"go on with: make pipeline NAME=night RUNS={tmp_path / 'runs'} CORPUS={tmp_path} STEPS=7" in line) == begun
    assert "table" not in out
    assert driver() == 0
    assert "table" in capsys.readouterr().out
    assert (tmp_path / "runs" / "latest").readlink().name == "night"
    assert not (tmp_path / "runs" / "night" / ".work").exists()


@pytest.mark.parametrize("place", [(run_folder, "point_latest"), (local, "write_json"), (local, "_print_table")])
def test_what_is_complete_is_not_cut_in_two(driver, tmp_path, capsys, place):
    assert driver(place) == 0
    assert "table" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs" / "night" / "run.json").read_text())["name"] == "night"
    assert (tmp_path / "runs" / "latest").readlink().name == "night"


def test_the_tracked_run_is_marked_interrupted(driver, tmp_path, mlflow_store):
    import mlflow

    driver((run_folder, "collect"))
    client = mlflow.MlflowClient(mlflow_store[0])
    experiment = client.get_experiment_by_name(tmp_path.name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["failure"]) == ("KILLED", "interrupted")
