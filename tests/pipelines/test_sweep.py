"""A sweep: many ways to pretrain, the best of which goes on through the stages that follow, and through the gate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.compile import FOLDER
from pipelines.inputs import split_trials
from pipelines.make_line import make_line

SPEC, _ = yaml.safe_load_all((FOLDER / "gpt-sweep.yaml").read_text(encoding="utf-8"))
TASKS = SPEC["root"]["dag"]["tasks"]


def test_the_trials_are_a_parameter_and_cover_learning_rates_and_sizes():
    parameter = SPEC["root"]["inputDefinitions"]["parameters"]["trials"]
    assert parameter["parameterType"] == "LIST"
    changed = [dict(word.split("=") for word in trial.split()) for trial in parameter["defaultValue"]]
    assert {trial["n_layers"] for trial in changed} == {"2", "4"}
    assert len({trial["learning_rate"] for trial in changed}) == 3
    assert len(changed) == 6


def test_all_trials_are_collected_and_what_follows_gets_the_best_ones_model():
    ((name, loop),) = [entry for entry in TASKS.items() if "parameterIterator" in entry[1]]
    assert loop["iteratorPolicy"]["parallelismLimit"] == 2
    inputs = TASKS["choose-trial"]["inputs"]["artifacts"]
    assert {key: value["taskOutputArtifact"]["producerTask"] for key, value in inputs.items()} == {
        "trials": name,
        "summaries": name,
    }
    for task in ("finetune-lora", "convert-checkpoint", "evaluate"):
        taken = TASKS[task]["inputs"]["artifacts"]["checkpoint"]["taskOutputArtifact"]
        assert taken == {"producerTask": "choose-trial", "outputArtifactKey": "checkpoint"}
    assert "pretrain" not in TASKS


def test_trials_are_typed_with_semicolons_between_and_the_line_to_go_on_with_has_them_so():
    typed = "learning_rate=0.01 n_layers=1; n_layers=2 ;"
    trials = split_trials(typed)
    assert trials == ["learning_rate=0.01 n_layers=1", "n_layers=2"]
    line = make_line("a", None, {"trials": trials}, {"trials": []}, "sweep")
    assert line == """make sweep NAME=a ARGS=''"'"'--trials=learning_rate=0.01 n_layers=1; n_layers=2'"'"''"""


@pytest.mark.slow
def test_the_best_trial_is_registered_as_the_candidate_and_trials_stand_side_by_side_in_mlflow(tmp_path):
    import mlflow

    novel = Path("examples/austen/train/emma.txt").read_text(encoding="utf-8")
    (tmp_path / "text").mkdir()
    for number in range(4):
        (tmp_path / "text" / f"{number}.txt").write_text(novel[number * 20_000 : (number + 1) * 20_000])
    pairs = [{"prompt": f"Is it {n} o'clock?", "response": f"It is {n}, sir."} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    trials = ["learning_rate=1e-7 n_layers=1", "learning_rate=0.01 n_layers=1", "n_heads=7"]
    line = [
        *("--sweep", "--runs", str(tmp_path / "runs"), "--name", "swept", "--trials", "; ".join(trials)),
        *("--corpus", str(tmp_path / "text"), "--heldout", "", "--instructions", str(tmp_path / "pairs.jsonl")),
        *("--vocab-size", "400", "--steps", "20", "--batch-size", "4", "--sequence-length", "64"),
        *("--lora-steps", "2", "--lora-rank", "2", "--task-items", "0"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.local", *line],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "trial=n_heads=7 failed: " in done.stderr

    folder = tmp_path / "runs" / "swept"
    best = "learning_rate=0.01,n_layers=1"
    assert json.loads((folder / "checkpoint" / "training.json").read_text())["recipe"]["name"] == best
    page = (folder / "report" / "sweep.html").read_text()
    assert page.index(best) < page.index("learning_rate=1e-7") < page.index("n_heads=7")

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "aic-ai-poc-gpt"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    tried = {name: run for name, run in children.items() if name.startswith("pretrain ")}
    assert sorted(tried) == [f"pretrain {best}", "pretrain learning_rate=1e-7,n_layers=1"]
    assert {run.data.params["recipe.learning_rate"] for run in tried.values()} == {"0.01", "1e-07"}
    bits = {name: run.data.metrics["heldout_bits_per_byte"] for name, run in tried.items()}
    assert min(bits, key=bits.get) == f"pretrain {best}"
    assert children["choose_trial"].data.tags["best"] == best
    version = client.get_model_version_by_alias("aic-gpt", "candidate")
    assert float(version.tags["bits_per_byte"]) > 0
    assert json.loads((folder / "report" / "registration.json").read_text())["decision"].startswith("first champion")
