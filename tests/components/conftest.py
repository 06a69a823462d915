"""A tiny pipeline run by hand: each component's function called directly, one after the other."""

import json
from pathlib import Path

import pytest

from components.readme import load_component


class Artifact:
    """What a component sees of an artifact: where it is, and a place for figures."""

    def __init__(self, path):
        self.path = str(path)
        self.metadata = {}

    def log_metric(self, name, value):
        self.metadata[name] = value


PARAMETERS = {
    "validate_data": {"heldout": "", "text_field": "text", "heldout_fraction": 0.1, "max_bad_fraction": 0.5},
    "train_tokenizer": {"vocab_size": 320, "algorithm": "unigram", "seed": 0, "user_symbols": ""},
    "tokenize_corpus": {},
    "pretrain": {
        "preset": "llama-nano",
        "steps": 3,
        "batch_size": 2,
        "sequence_length": 64,
        "learning_rate": 0.0,
        "optimizer": "recipe",
        "seed": 0,
        "checkpoint_uri": "",
    },
    "finetune_lora": {
        "rank": 2,
        "alpha": 4.0,
        "quantize": "nf4",
        "micro_batch_size": 4,
        "steps": 2,
        "learning_rate": 1e-3,
        "seed": 0,
    },
    "convert_checkpoint": {},
    "evaluate": {"seed": 0, "task_items": 10},
    "register_model": {"model_name": "tiny"},
    "write_report": {"run_folder": "runs/x"},
    "check_drift": {
        "model_name": "tiny",
        "text_field": "text",
        "sample_bytes": 100_000,
        "score_bytes": 2_000,
        "max_token_distance": 0.3,
        "max_length_psi": 0.25,
        "max_bytes_per_token_change": 0.15,
        "max_fallback_rise": 0.01,
        "max_bits_per_byte_rise": 0.5,
        "seed": 0,
    },
}

SUMMARIES = (
    "validate_data",
    "train_tokenizer",
    "tokenize_corpus",
    "pretrain",
    "finetune_lora",
    "convert_checkpoint",
    "evaluate",
    "register_model",
)


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A small corpus with sentences enough for a small vocabulary, and a few instructions."""
    folder = tmp_path_factory.mktemp("sample")
    novel = Path("examples/austen/train/emma.txt").read_text(encoding="utf-8")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.txt").write_text(novel[:30_000], encoding="utf-8")
    (folder / "corpus" / "b.txt").write_text(novel[30_000:60_000], encoding="utf-8")
    pairs = [
        {"prompt": f"How are you, {name}?", "response": f"I am well, said {name}."} for name in "ABCDEFGHIJKLMNOPQRST"
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def arguments(sample):
    """Artifact and parameter arguments of each component: ``{component: {name: value}}``."""
    edges = {
        "validate_data": {},
        "train_tokenizer": {"corpus": "validate_data/train_corpus"},
        "tokenize_corpus": {
            "corpus": "validate_data/train_corpus",
            "heldout": "validate_data/heldout_corpus",
            "tokenizer": "train_tokenizer/tokenizer",
        },
        "pretrain": {"tokens": "tokenize_corpus/tokens"},
        "finetune_lora": {"checkpoint": "pretrain/checkpoint"},
        "convert_checkpoint": {"checkpoint": "pretrain/checkpoint", "adapter": "finetune_lora/adapter"},
        "evaluate": {
            "checkpoint": "pretrain/checkpoint",
            "export": "convert_checkpoint/export",
            "tokens": "tokenize_corpus/tokens",
            "heldout": "validate_data/heldout_corpus",
        },
        "register_model": {"export": "convert_checkpoint/export", "evaluation": "evaluate/evaluation"},
        "write_report": {name: f"{name}/summary" for name in SUMMARIES},
        "check_drift": {},
    }
    parameters = {name: dict(values) for name, values in PARAMETERS.items()}
    for name in ("validate_data", "check_drift"):
        parameters[name]["corpus"] = str(sample / "corpus")
    for name in ("finetune_lora", "evaluate"):
        parameters[name]["instructions"] = str(sample / "pairs.jsonl")
    return edges, parameters


@pytest.fixture(scope="session")
def direct_run(tmp_path_factory, arguments, mlflow_store):
    """Every component's ``.python_func`` called in turn; the folder of their outputs, and their artifacts."""
    root = tmp_path_factory.mktemp("direct")
    edges, parameters = arguments
    artifacts = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store[0])
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "direct")
        patch.setenv("KFP_RUN_ID", "direct-run")
        from modelcore import tracking

        tracking.ensure_experiment(mlflow_store[1])
        for name, inputs in edges.items():
            component = load_component(name)
            outputs = [key for key in component.component_spec.outputs or {} if key != "Output"]
            made = {key: Artifact(root / name / key) for key in outputs}
            (root / name).mkdir()
            component.python_func(
                **{key: Artifact(root / source) for key, source in inputs.items()}, **made, **parameters[name]
            )
            artifacts[name] = made
    return root, artifacts
