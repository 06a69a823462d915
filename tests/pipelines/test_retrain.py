"""The pipeline that looks at new text first: which stages run is decided by what is found, under KFP's local runner."""

import json
import typing
from pathlib import Path

import pytest
import yaml
from kfp import components, local

from modelcore import tracking
from modelcore.stages.check_drift import check_drift
from pipelines.compile import FOLDER
from pipelines.run_folder import STAGES

SPEC, PLATFORM = yaml.safe_load_all((FOLDER / "gpt-retrain.yaml").read_text(encoding="utf-8"))
SMALL = {
    "heldout": "",
    "heldout_fraction": 0.1,
    "vocab_size": 400,
    "steps": 4,
    "batch_size": 2,
    "sequence_length": 64,
    "lora_steps": 2,
    "task_items": 0,
    "score_bytes": 0,
}


def test_all_that_trains_waits_for_the_decision():
    tasks = SPEC["root"]["dag"]["tasks"]
    check, (branch,) = tasks.pop("check-drift"), tasks.values()
    assert not check.get("dependentTasks")
    assert branch["dependentTasks"] == ["check-drift"]
    assert branch["triggerPolicy"]["condition"].endswith("== 'train'")
    inner = SPEC["components"][branch["componentRef"]["name"]]["dag"]["tasks"]
    assert sorted(inner) == sorted(stage.replace("_", "-") for stage in STAGES)


def test_the_stages_in_the_branch_find_their_keys_too():
    executors = PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name for name, pod in executors.items() if "secretAsEnv" in pod} == {
        f"exec-{stage}" for stage in ("check-drift", "validate-data", "pretrain", "finetune-lora", "evaluate")
    }


@pytest.mark.slow
def test_first_text_is_trained_on_the_same_again_is_not_and_other_text_is(tmp_path, monkeypatch):
    novel = Path("examples/austen/train/emma.txt").read_text(encoding="utf-8")
    texts = {"novel": novel[:40_000], "more": novel[40_000:80_000], "code": Path(typing.__file__).read_text()[:60_000]}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        for number in range(4):  # enough documents to hold some of each out
            piece = len(text) // 4
            (tmp_path / name / f"{number}.txt").write_text(
                text[number * piece : (number + 1) * piece], encoding="utf-8"
            )
    pairs = [{"prompt": f"Is it {n} o'clock?", "response": f"It is {n}, sir."} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tracking.ensure_experiment(tmp_path / "artifacts")
    pipeline = components.load_component_from_file(str(FOLDER / "gpt-retrain.yaml"))

    def run(name, text):
        """The stages that ran, and what the first of them decided."""
        monkeypatch.setenv("KFP_RUN_ID", name)
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / name))
        pipeline(corpus=str(tmp_path / text), instructions=str(tmp_path / "pairs.jsonl"), max_bad_fraction=0.5, **SMALL)
        summaries = [json.loads(file.read_text()) for file in (tmp_path / name).rglob("summary")]
        found = {summary["stage"]: summary["results"] for summary in summaries}
        return sorted(found), found["check_drift"]["reason"]

    assert run("first", "novel") == (sorted([*STAGES, "check_drift"]), "there is no champion")
    stages, reason = run("second", "more")
    assert stages == ["check_drift"], reason
    assert reason == "the text is of the kind that champion version 1 was trained on"
    decided = check_drift(corpus=str(tmp_path / "code"), out=tmp_path / "page.html", score_bytes=0).results
    assert decided["decision"] == "train"  # upon which all stages run, as they did the first time
    assert "other tokens" in decided["reason"]
