"""The whole pipeline on this machine, small: what a run leaves behind, how a second one differs, how one fails."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines import local

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    *("--vocab-size", "400", "--steps", "24", "--batch-size", "4", "--sequence-length", "64"),
    *("--lora-steps", "3", "--lora-rank", "2", "--task-items", "20"),
]


def start(runs, *options, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.local", "--runs", str(runs), *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_pipeline(runs, *options, **environment):
    process = start(runs, *options, **environment)
    out, err = process.communicate(timeout=1200)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A corpus of two short texts and a broken one, an evaluation text, and pairs for LoRA."""
    folder = tmp_path_factory.mktemp("own-text")
    novel = (REPOSITORY / "examples/austen/train/emma.txt").read_text(encoding="utf-8")
    (folder / "train").mkdir()
    (folder / "train" / "a.txt").write_text(novel[:40_000], encoding="utf-8")
    (folder / "train" / "b.txt").write_text(novel[40_000:80_000], encoding="utf-8")
    (folder / "train" / "broken.txt.gz").write_bytes(gzip.compress(novel[:5_000].encode())[:-10])
    (folder / "heldout.txt").write_text(novel[100_000:110_000], encoding="utf-8")
    pairs = [{"prompt": f"Is it {n} o'clock?", "response": f"It is {n}, sir."} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return [
        "--corpus", str(folder / "train"),
        "--heldout", str(folder / "heldout.txt"),
        "--instructions", str(folder / "pairs.jsonl"),
        "--max-bad-fraction", "0.3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sample):
    """Two runs one after the other in the same folder, the second with another seed."""
    runs = tmp_path_factory.mktemp("runs")
    first = run_pipeline(runs, "--name", "first", *SMALL, *sample)
    second = run_pipeline(runs, "--name", "second", "--seed", "1", *SMALL, *sample)
    for status, _, err in (first, second):
        assert status == 0, err
    return runs, first, second


def test_everything_of_a_run_lies_in_its_folder(finished):
    runs, *_ = finished
    for place in ("tokenizer", "tokens", "checkpoint", "adapter", "export", "report"):
        assert any((runs / "first" / place).iterdir()), place
    assert (runs / "first" / "report" / "index.html").stat().st_size > 10_000
    assert (runs / "first" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (runs / "first" / ".work").exists()


def test_latest_points_to_the_newest_run_and_its_export_loads_in_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    runs, *_ = finished
    assert (runs / "latest").readlink() == Path("second")
    model = AutoModelForCausalLM.from_pretrained(runs / "latest" / "export")
    tokenizer = AutoTokenizer.from_pretrained(runs / "latest" / "export")
    assert model.config.vocab_size == len(tokenizer)


def test_it_ends_with_a_table_of_stages_compressors_samples_and_the_next_commands(finished):
    _, (_, out, _), _ = finished
    for word in (
        "pretrain",
        "gzip",
        "bzip2",
        "xz",
        "bits per byte",
        "make mlflow-ui",
        "modelcore generate",
        "index.html",
    ):
        assert word in out, word
    runs, *_ = finished
    assert max(len(line) for line in out.splitlines() if str(runs) not in line) <= 100


def test_it_counts_and_names_what_was_refused(finished):
    for _, out, err in finished[1:]:
        told = " ".join(out.split())
        assert "1 of 4 documents were refused: broken.txt.gz:1 (the file cannot be read on from here: " in told
        assert "data/quarantine/quarantine.jsonl" in told
        assert err.count("refused=1 documents=4: broken.txt.gz:1") == 1


def test_the_page_loads_nothing_from_elsewhere_and_links_to_the_runs_own_outputs(finished):
    runs, *_ = finished
    page = (runs / "first" / "report" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""src=["'](?!data:)|<link|@import|url\((?!["']?(data:|#))""", page)
    assert "<script" not in page
    links = re.findall(r"""<a\b[^>]*\bhref=["']([^"'#]+)["']""", page)
    assert links
    assert [link for link in links if not (runs / "first" / "report" / link).exists()] == []


def test_mlflow_has_a_parent_run_with_a_child_for_each_stage(finished):
    import mlflow

    runs, *_ = finished
    client = mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "aic-ai-poc-gpt"]
    found = client.search_runs([experiment.experiment_id])
    parents = {run.info.run_name: run for run in found if "mlflow.parentRunId" not in run.data.tags}
    assert parents.keys() == {"first", "second"}
    parent = parents["first"]
    children = {r.info.run_name: r for r in found if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert len(children) == 9
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert parent.data.metrics["bits_per_byte"] > 0
    assert parent.data.params["vocab_size"] == "400"
    assert parent.data.params["optimizer"] == "recipe"  # what was left at its default is compared too
    pretrain = children["pretrain"]
    for metric in ("loss", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second", "mfu"):
        assert len(client.get_metric_history(pretrain.info.run_id, metric)) > 1, metric
    assert any(key.startswith("system/") for key in pretrain.data.metrics)
    assert any(a.path.endswith(".png") for a in client.list_artifacts(pretrain.info.run_id))
    assert children["validate_data"].inputs.dataset_inputs
    assert {a.path for a in client.list_artifacts(parent.info.run_id, "report")} >= {"report/index.html"}


def test_the_registry_has_a_candidate_always_and_a_champion_by_the_gates_rule(finished):
    import mlflow

    runs, *_ = finished
    client = mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    assert client.get_model_version_by_alias("aic-gpt", "candidate").version == 2
    decisions = [json.loads((runs / n / "report" / "registration.json").read_text()) for n in ("first", "second")]
    assert decisions[0]["champion"] is True
    better = decisions[1]["bits_per_byte"] <= decisions[0]["bits_per_byte"] - 0.005
    assert decisions[1]["champion"] is better
    assert client.get_model_version_by_alias("aic-gpt", "champion").version == (2 if better else 1)


def test_a_second_run_takes_the_pure_stages_from_the_cache(finished):
    runs, *_ = finished
    cached = {
        path.stem: json.loads(path.read_text())["cached"]
        for path in (runs / "second" / "report" / "summaries").glob("*.json")
    }
    assert cached["validate_data"] is True
    assert cached["pretrain"] is False
    # The seed is a parameter of the tokenizer, so another seed trains it anew; the same tokenizer comes out.
    assert cached["train_tokenizer"] is False


def test_a_finished_run_is_never_overwritten(finished, sample, capsys):
    runs, *_ = finished
    assert local.main(["--runs", str(runs), "--name", "first", *SMALL, *sample]) == 1
    assert "error: run 'first' is finished already" in capsys.readouterr().err


def up_to(process, words):
    """Reads a run's lines until one has ``words``; returns them."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    pytest.fail(f"no line with {words!r}: {''.join(lines)}")


def processes_of(folder):
    found = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if "executor_main" in line and str(folder) in line]


@pytest.mark.slow
def test_a_run_stopped_again_and_again_goes_on_under_its_name(tmp_path, sample):
    recipe = tmp_path / "recipe.yaml"
    nano = REPOSITORY / "modelcore/training/recipes/llama-nano.yaml"
    recipe.write_text(re.sub("checkpoint_every: .*", "checkpoint_every: 10", nano.read_text()))
    line = ["--name", "night", *SMALL, "--steps", "60", "--preset", str(recipe), *sample]

    killed = start(tmp_path, *line)
    up_to(killed, "checkpoint=")
    killed.kill()  # it alone: its stage lives on
    killed.communicate()

    stopped = start(tmp_path, *line)
    up_to(stopped, "resumes from")
    stopped.send_signal(signal.SIGTERM)
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=600)
    assert (stopped.returncode in (130, 143), out) == (True, "")  # whichever of the two came first
    last = err.splitlines()[-1]
    assert last.startswith("interrupted. What was done is kept; go on with: make pipeline NAME=night ")
    assert " STEPS=60 " in last
    assert 'ARGS="--batch-size=4 ' in last
    assert [text for text in err.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", text)] == [last]
    assert processes_of(tmp_path) == []

    status, _, err = run_pipeline(tmp_path, *line)
    assert status == 0, err
    assert err.count("resumes from") == 1
    assert (tmp_path / "latest" / "export" / "model.safetensors").is_file()
    training = json.loads((tmp_path / "night" / "checkpoint" / "training.json").read_text())
    assert training["totals"]["steps"] == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", "/no/such/text"], r"^error: corpus '/no/such/text' does not exist; give a file"),
        (["--instructions", "/no/pairs.jsonl"], r"^error: instructions '/no/pairs.jsonl' does not exist; give a"),
        (["--preset", "no-such-preset"], r"^error: unknown recipe 'no-such-preset'; known: .*llama-nano"),
        (["--sweep", "--trials", "n_layer=2"], r"^error: trial 'n_layer=2': there is no 'n_layer' to change; known: "),
        (["--name", "latest"], r"^error: run name 'latest'"),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_begins(tmp_path, sample, options, message, capsys):
    assert local.main(["--runs", str(tmp_path), *SMALL, *sample, *options]) == 1
    out, err = capsys.readouterr()
    assert re.search(message, err), err
    assert (out, err.count("\n")) == ("", 1)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_fails_is_one_clear_line_and_a_failing_exit(tmp_path, sample):
    status, out, err = run_pipeline(tmp_path, *SMALL, *sample, "--vocab-size", "100000")
    assert status == 1
    assert re.search(r"stage train_tokenizer failed: .*100000.*\n.*start again with the same NAME=", err), err
    assert "Traceback" not in err + out
    assert not (tmp_path / "latest").exists()
