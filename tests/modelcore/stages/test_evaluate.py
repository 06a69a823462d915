"""The evaluate stage, on real folders: a tokenizer, tokens, a checkpoint, its export and the held-out text."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modelcore.convert import read_model
from modelcore.convert.huggingface import write_huggingface
from modelcore.data.drift import TextProfile
from modelcore.data.shards import open_split, write_tokens
from modelcore.errors import InputError
from modelcore.evaluation.compressors import compressed_bits_per_byte
from modelcore.evaluation.perplexity import evaluate_split
from modelcore.evaluation.tasks import run_tasks, write_tasks
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import TextGenerator
from modelcore.models import save_model
from modelcore.stages.evaluate import evaluate
from modelcore.stages.stage import StageSummary
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

WORDS = ("the", "a", "sister", "walked", "talked", "with", "and", "letter", "garden", "é", "–")
TRAIN = [" ".join(WORDS[(i * i + j) % len(WORDS)] for j in range(12)) + ".\n" for i in range(300)]
HELDOUT = [
    "".join(" ".join(WORDS[(i * n + j * j) % len(WORDS)] for j in range(n, n + 12)) + " home.\n" for n in range(25))
    for i in range(1, 4)
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """A run's folders as the stages before leave them; the tuned model differs from the pretrained one."""
    root = tmp_path_factory.mktemp("run")
    for name in ("tokenizer", "checkpoint", "export", "heldout"):
        (root / name).mkdir()
    train_sentencepiece(TRAIN, root / "tokenizer", vocab_size=300, algorithm="bpe", seed=0)
    tokenizer = Tokenizer.load(root / "tokenizer")
    write_tokens(root / "tokens", tokenizer, train=TRAIN, heldout=HELDOUT)
    pq.write_table(pa.table({"text": HELDOUT}), root / "heldout" / "part.parquet")
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, 128, 1, 32, 4, 2, 48))
    save_model(root / "checkpoint", model, tokenizer.model_file)
    torch.nn.init.normal_(model.embedding.weight, std=0.1)
    write_huggingface(root / "export", model, tokenizer)
    return {name: root / name for name in ("checkpoint", "export", "tokens", "heldout")}


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory) -> tuple[StageSummary, Path]:
    out = tmp_path_factory.mktemp("out") / "evaluation"
    return evaluate(**inputs, out=out, seed=3, summary=out.parent / "summary.json"), out


def test_what_is_measured_is_the_export_and_the_checkpoint_beside_it(inputs, done):
    results = done[0].results
    split = open_split(inputs["tokens"], "heldout")
    for prefix, folder in (("", "export"), ("pretrained_", "checkpoint")):
        score = evaluate_split(read_model(inputs[folder]), split)
        assert results[f"{prefix}bits_per_byte"] == pytest.approx(score.bits_per_byte)
        assert results[f"{prefix}perplexity"] == pytest.approx(score.perplexity)
        assert results[f"{prefix}token_accuracy"] == score.token_accuracy
        assert results[f"{prefix}expected_calibration_error"] == pytest.approx(score.calibration.expected_error)
        assert done[0].series[f"{prefix}reliability"] == score.calibration.columns()
    assert results["bits_per_byte"] != results["pretrained_bits_per_byte"]
    assert results["heldout_tokens"] == split.n_tokens
    assert results["heldout_bytes"] == len("".join(HELDOUT).encode())


def test_progress_says_which_model_is_measured(inputs, tmp_path, capsys):
    evaluate(**inputs, out=tmp_path / "out", task_items=0)
    lines = [line for line in capsys.readouterr().err.splitlines() if " token=" in line]
    assert [line.partition(" token=")[0].partition(" INFO ")[2] for line in lines] == [
        "evaluate pretrained",
        "evaluate tuned",
    ]


def test_compressors_stand_beside_the_models(done):
    results, series = done[0].results, done[0].series["bits_per_byte"]
    for name, bits in compressed_bits_per_byte(HELDOUT).items():
        assert results[f"{name}_bits_per_byte"] == bits
    assert series["name"] == ["tuned model", "pretrained model", "gzip -9", "bzip2 -9", "xz -9e"]
    assert series["bits_per_byte"][0] == results["bits_per_byte"]
    assert series["bits_per_byte"][4] == results["xz_bits_per_byte"]
    assert series["is_model"] == [True, True, False, False, False]


def test_samples_of_both_models_are_in_the_results(done):
    samples = done[0].results["samples"]
    assert len(samples) == 3
    assert all(set(sample) == {"prompt", "before", "after"} for sample in samples)
    assert any(sample["before"] != sample["after"] for sample in samples)


def test_without_instructions_the_prompts_are_sentences_of_the_heldout_text(done):
    text = " ".join("".join(HELDOUT).split())
    assert all(sample["prompt"] in text for sample in done[0].results["samples"])


def test_the_prompts_are_of_the_conversations_that_tuning_did_not_learn_from(inputs, tmp_path):
    """Those that tuning leaves out for their length do not count, as they do not there."""
    lines = [{"prompt": f"letter {i}?", "response": "the garden " * (100 if i == 3 else 1)} for i in range(45)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    summary = evaluate(**inputs, out=tmp_path / "evaluation", instructions=file, task_items=0)
    assert [sample["prompt"] for sample in summary.results["samples"]] == ["letter 20?", "letter 40?"]
    assert summary.parameters["instructions"] == str(file)


def test_instructions_that_are_missing_are_named_before_the_work(inputs, tmp_path):
    with pytest.raises(InputError, match=r"nowhere.jsonl does not exist"):
        evaluate(**inputs, out=tmp_path / "evaluation", instructions="nowhere.jsonl")
    assert not (tmp_path / "evaluation").exists()


def test_the_files_hold_the_results(done):
    summary, out = done
    assert json.loads((out / "evaluation.json").read_text(encoding="utf-8")) == summary.results
    assert summary.results["samples"][0]["prompt"] in (out / "samples.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "reference", "samples.md", "tasks"]
    assert StageSummary.load(out.parent / "summary.json") == summary


def test_it_keeps_what_tells_the_text_trained_on_from_another_and_the_tokenizer_for_it(inputs, done):
    _, out = done
    tokenizer, split = Tokenizer.load(out / "reference"), open_split(inputs["tokens"], "train")
    assert tokenizer.digest == split.tokenizer_digest
    kept = TextProfile.from_dict(json.loads((out / "reference" / "profile.json").read_text(encoding="utf-8")))
    assert (kept.n_tokens, kept.n_bytes) == (split.n_tokens, split.n_bytes)
    assert sum(kept.unigrams) == split.n_tokens


def test_both_models_are_put_to_the_tasks_that_are_made_from_the_text(inputs, done, tmp_path):
    results, out = done[0].results, done[1]
    for prefix, folder in (("", "export"), ("pretrained_", "checkpoint")):
        scores = run_tasks(TextGenerator.load(inputs[folder]), out / "tasks", ["last_word", "multiple_choice"])
        for name, score in scores.items():
            assert results[f"{prefix}{name}_accuracy"] == score.accuracy
            assert results[f"{prefix}{name}_standard_error"] == score.standard_error
            assert results[f"{name}_items"] == score.items >= 10
    assert write_tasks(tmp_path, HELDOUT) == {name: results[f"{name}_items"] for name in scores}
    for file in tmp_path.iterdir():
        assert (out / "tasks" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("items", [-1, 9])
def test_a_number_of_items_that_makes_no_task_is_refused_before_the_work(inputs, tmp_path, items):
    with pytest.raises(InputError, match=f"{items} items are too few for a task; take 10 or more"):
        evaluate(**inputs, out=tmp_path / "evaluation", task_items=items)
    assert not (tmp_path / "evaluation").exists()


def test_without_tasks_lm_eval_is_not_needed(inputs, done, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # importing it fails
    summary = evaluate(**inputs, out=tmp_path / "evaluation", seed=3, task_items=0)
    assert summary.results == {key: value for key, value in done[0].results.items() if not is_of_a_task(key)}
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == [
        "evaluation.json",
        "reference",
        "samples.md",
    ]
    with pytest.raises(ModuleNotFoundError, match="lm_eval"):
        evaluate(**inputs, out=tmp_path / "evaluation")


def is_of_a_task(key: str) -> bool:
    return "last_word" in key or "multiple_choice" in key


def test_the_same_seed_gives_the_same_files_byte_for_byte(inputs, done, tmp_path):
    again = evaluate(**inputs, out=tmp_path / "evaluation", seed=3)
    assert again.results == done[0].results
    files = [path.relative_to(done[1]) for path in done[1].rglob("*") if path.is_file()]
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "evaluation" / file).read_bytes() == (done[1] / file).read_bytes()


def test_another_seed_gives_other_samples_and_the_same_figures(inputs, done, tmp_path):
    again, other = done[0], evaluate(**inputs, out=tmp_path / "evaluation", seed=4)
    assert other.results["last_word_accuracy"] == again.results["last_word_accuracy"]
    assert other.results["samples"] != again.results["samples"]
    assert other.results["bits_per_byte"] == again.results["bits_per_byte"]


def test_the_digest_is_of_the_text_not_of_the_file_or_the_tokens(inputs, done, tmp_path):
    """Another tokenizer and another file format: the same text, the same digest."""
    run = tmp_path
    for name in ("tokenizer", "model", "heldout"):
        (run / name).mkdir()
    train_sentencepiece(TRAIN, run / "tokenizer", vocab_size=290, algorithm="bpe", seed=0)
    tokenizer = Tokenizer.load(run / "tokenizer")
    write_tokens(run / "tokens", tokenizer, train=TRAIN, heldout=HELDOUT)
    for number, text in enumerate(HELDOUT):
        (run / "heldout" / f"{number}.txt").write_text(text, encoding="utf-8")
    save_model(run / "model", GPT(GPTConfig(290, 128, 1, 16, 2, 2, 16)), tokenizer.model_file)
    summary = evaluate(
        checkpoint=run / "model",
        export=run / "model",
        tokens=run / "tokens",
        heldout=run / "heldout",
        out=run / "out",
    )
    assert summary.results["heldout_digest"] == done[0].results["heldout_digest"]


def test_figures_files_and_picture_are_tracked(inputs, tmp_path, mlflow_client, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "pipeline-of-evaluate")
    summary = evaluate(**inputs, out=tmp_path / "evaluation", seed=3)
    experiment = mlflow_client.search_experiments(filter_string="name LIKE '%test_figures_files%'")[0]
    runs = mlflow_client.search_runs([experiment.experiment_id], "tags.stage = 'evaluate'")
    [run] = runs
    assert run.info.status == "FINISHED"
    assert run.data.metrics["bits_per_byte"] == summary.results["bits_per_byte"]
    assert run.data.metrics["last_word_accuracy"] == summary.results["last_word_accuracy"]
    assert run.data.metrics["expected_calibration_error"] == summary.results["expected_calibration_error"]
    assert run.data.params["seed"] == "3"
    artifacts = {file.path for file in mlflow_client.list_artifacts(run.info.run_id)}
    assert {"evaluation", "bits_per_byte.png", "reliability.png"} <= artifacts
    assert {file.path for file in mlflow_client.list_artifacts(run.info.run_id, "evaluation")} == {
        "evaluation/evaluation.json",
        "evaluation/reference",
        "evaluation/samples.md",
        "evaluation/tasks",
    }


def test_a_text_other_than_the_tokens_is_refused_and_nothing_is_replaced(inputs, done, tmp_path):
    out = tmp_path / "evaluation"
    shutil.copytree(done[1], out)
    before = (out / "evaluation.json").read_bytes()
    (tmp_path / "other.txt").write_text("Another text.", encoding="utf-8")
    with pytest.raises(InputError, match=r"the held-out text in .*other.txt has 13 bytes, the tokens in .* stand for"):
        evaluate(**{**inputs, "heldout": tmp_path / "other.txt"}, out=out)
    assert (out / "evaluation.json").read_bytes() == before


@pytest.mark.parametrize("which", ["checkpoint", "export"])
def test_a_model_of_another_tokenizer_is_refused(inputs, tmp_path, which):
    train_sentencepiece(TRAIN, tmp_path, vocab_size=299, algorithm="bpe", seed=0)
    tokenizer = Tokenizer.load(tmp_path)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", GPT(GPTConfig(299, 64, 1, 16, 2, 2, 16)), tokenizer.model_file)
    with pytest.raises(InputError, match="was made with another tokenizer"):
        evaluate(**{**inputs, which: tmp_path / "model"}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_broken_weights_end_the_stage_with_a_clear_line(inputs, tmp_path):
    shutil.copytree(inputs["checkpoint"], tmp_path / "model")
    model = read_model(inputs["checkpoint"])
    state = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    state["norm.weight"] = torch.full_like(state["norm.weight"], float("nan"))
    model.load_state_dict(state)
    save_model(tmp_path / "model", model, inputs["checkpoint"] / "tokenizer.model")
    with pytest.raises(InputError, match="the model's logits are not finite numbers"):
        evaluate(**{**inputs, "export": tmp_path / "model"}, out=tmp_path / "out")
