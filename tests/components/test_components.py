"""Each component works when called directly, under KFP's local runner, and compiles."""

import json
import pkgutil
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl, local

from components.readme import component_names, load_component, render
from modelcore import tracking
from modelcore.errors import InputError
from modelcore.stages.stage import StageSummary

NAMES = (
    "validate_data",
    "train_tokenizer",
    "tokenize_corpus",
    "pretrain",
    "finetune_lora",
    "convert_checkpoint",
    "evaluate",
    "register_model",
    "write_report",
    "check_drift",
)
# Those that start a job in a cluster: run in tests of the cluster's part.
ON_A_CLUSTER = (
    "finetune_lora_distributed",
    "pretrain_distributed",
    "tokenize_corpus_spark",
    "validate_data_spark",
)
# Those of a sweep: run in tests of its pipeline.
OF_A_SWEEP = ("pretrain_trial", "choose_trial")


def test_there_is_a_folder_for_every_stage():
    assert component_names() == sorted(NAMES + ON_A_CLUSTER + OF_A_SWEEP)


@pytest.mark.parametrize("name", NAMES)
def test_called_directly_it_makes_every_output_and_its_summary(direct_run, name):
    root, artifacts = direct_run
    for key in artifacts[name]:
        assert key == "metrics" or (root / name / key).exists(), key
    summary = StageSummary.load(root / name / "summary")
    assert summary.stage == name
    assert summary.seconds > 0


def test_what_a_stage_wrote_it_may_replace_and_no_other_stage_may(direct_run):
    root, _ = direct_run
    kinds = {
        "validate_data/train_corpus": "validate_data.CORPUS",
        "validate_data/heldout_corpus": "validate_data.CORPUS",
        "validate_data/quarantine": "validate_data.QUARANTINE",
        "validate_data/data_docs": "validate_data.DOCS",
        "train_tokenizer/tokenizer": "train_tokenizer.TOKENIZER",
        "tokenize_corpus/tokens": "tokenize_corpus.TOKENS",
        "pretrain/checkpoint": "pretrain.MODEL",
        "finetune_lora/adapter": "finetune_lora.ADAPTER",
        "convert_checkpoint/export": None,  # checks its destination by itself
        "evaluate/evaluation": "evaluate.EVALUATION",
        "register_model/registration": "register_model.REGISTRATION",
        "write_report/page": "write_report.PAGE",
        "check_drift/page": "check_drift.PAGE",
    }
    found = {
        kind: pkgutil.resolve_name(f"modelcore.stages.{kind.replace('.', ':')}") for kind in kinds.values() if kind
    }
    for place, own in kinds.items():
        for kind, output in found.items():
            if kind == own:
                output.check(root / place)
            else:
                with pytest.raises(InputError, match="is left as it is"):
                    output.check(root / place)


@pytest.mark.parametrize("name", ["pretrain", "finetune_lora", "evaluate", "check_drift"])
def test_figures_are_kfp_metrics_too(direct_run, name):
    _, artifacts = direct_run
    figures = artifacts[name]["metrics"].metadata
    assert figures["stage_seconds"] > 0
    assert all(isinstance(value, float) for value in figures.values())


def test_text_of_the_champions_kind_is_not_trained_on_again_and_other_text_is(
    direct_run, mlflow_store, tmp_path, monkeypatch
):
    from modelcore.stages.check_drift import check_drift

    root, _ = direct_run
    same = StageSummary.load(root / "check_drift" / "summary").results
    assert same["decision"] == "keep"
    assert same["token_distance"] < 0.1
    assert same["bits_per_byte"] > 0
    assert (root / "check_drift" / "page").read_text(encoding="utf-8").count("<svg") == 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store[0])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "direct")
    (tmp_path / "code.txt").write_text(Path(json.__file__).read_text(), encoding="utf-8")
    other = check_drift(corpus=str(tmp_path), out=tmp_path / "page.html", model_name="tiny", score_bytes=0).results
    assert other["decision"] == "train"
    assert "other tokens (token_distance" in other["reason"]
    assert "bits_per_byte" not in other  # the model was not asked
    assert check_drift(corpus=str(tmp_path), out=tmp_path / "page.html", model_name="new").results["reason"] == (
        "there is no champion"
    )


def test_what_the_chain_ships_is_a_model_that_transformers_loads(direct_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root, _ = direct_run
    export = root / "convert_checkpoint" / "export"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    ids = tokenizer("Emma was", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] <= ids.shape[1] + 4


@pytest.mark.parametrize("name", NAMES)
def test_under_the_local_runner_it_does_the_same(direct_run, arguments, mlflow_store, name, tmp_path, monkeypatch):
    """The component alone in a pipeline, its inputs imported from the direct run."""
    root, _ = direct_run
    edges, parameters = arguments
    component = load_component(name)
    classes = {key: spec.type for key, spec in component.component_spec.inputs.items()}
    by_title = {cls.schema_title: cls for cls in (dsl.Artifact, dsl.Dataset, dsl.Model)}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store[0])
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "local")
    monkeypatch.setenv("KFP_RUN_ID", f"local-{name}")
    tracking.ensure_experiment(mlflow_store[1])

    @dsl.pipeline(name="one")
    def one():
        inputs = {
            key: dsl.importer(
                artifact_uri=str(root / source), artifact_class=by_title[classes[key].split("@")[0]], reimport=False
            ).output
            for key, source in edges[name].items()
        }
        component(**inputs, **parameters[name])

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path))
    one()
    (summary,) = tmp_path.glob(f"one-*/{name.replace('_', '-')}/summary")
    again, before = StageSummary.load(summary), StageSummary.load(root / name / "summary")
    assert again.results.keys() == before.results.keys()
    for key in {"vocab_size", "train_tokens", "heldout_bits_per_byte", "bits_per_byte"} & before.results.keys():
        assert again.results[key] == pytest.approx(before.results[key], rel=1e-5), key


@pytest.mark.parametrize("name", NAMES + ON_A_CLUSTER + OF_A_SWEEP)
def test_it_compiles_and_installs_nothing_when_it_runs(name, tmp_path):
    path = tmp_path / "component.yaml"
    compiler.Compiler().compile(load_component(name), str(path))
    (executor,) = yaml.safe_load(path.read_text())["deploymentSpec"]["executors"].values()
    assert executor["container"]["image"].startswith("aic-ai-poc-gpt-")
    assert not executor["container"]["image"].endswith(":latest")
    assert "pip install" not in json.dumps(executor)


@pytest.mark.parametrize("name", NAMES + ON_A_CLUSTER + OF_A_SWEEP)
def test_its_readme_is_current(name):
    from components.readme import FOLDER

    assert (FOLDER / name / "README.md").read_text(encoding="utf-8") == render(name), "run: make compile"


@pytest.mark.parametrize("name", NAMES + ON_A_CLUSTER + OF_A_SWEEP)
def test_every_input_and_output_is_described(name):
    assert "|  |" not in render(name)
