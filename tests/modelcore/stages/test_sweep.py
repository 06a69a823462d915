"""The trials of a sweep and the choice among them, on real tokens."""

import json
import math
import shutil
from pathlib import Path

import pytest

from modelcore.data.shards import write_tokens
from modelcore.errors import InputError
from modelcore.models import load_model
from modelcore.stages.choose_trial import Trial, best_trial, choose_trial
from modelcore.stages.pretrain_trial import parse_trial, pretrain_trial, trial_name
from modelcore.stages.stage import StageSummary
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece
from modelcore.training.state import save_checkpoint

SMALL = {"steps": 3, "batch_size": 2, "sequence_length": 32}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    novel = Path("examples/austen/train/emma.txt").read_text(encoding="utf-8")
    (folder / "tokenizer").mkdir()
    train_sentencepiece([novel[:20_000]], folder / "tokenizer", vocab_size=350, algorithm="bpe", seed=0)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    write_tokens(folder / "tokens", tokenizer, train=[novel[:20_000]], heldout=[novel[20_000:22_000]])
    return folder / "tokens"


@pytest.fixture(scope="module")
def trials(tokens, tmp_path_factory):
    """Three trials: of a learning rate that learns, of one that is far too small, and of a model that cannot be."""
    folder = tmp_path_factory.mktemp("trials")
    for trial in ("learning_rate=1e-2 n_layers=1", "learning_rate=1e-7 n_layers=1", "n_heads=7"):
        place = folder / trial_name(trial)
        place.mkdir()
        pretrain_trial(
            tokens=tokens, out=place / "model", trial=trial, summary=place / "summary", **SMALL | {"steps": 12}
        )
    return sorted(folder.iterdir())


def choose(folders, tmp_path):
    return choose_trial(
        trials=[folder / "model" for folder in folders],
        summaries=[folder / "summary" for folder in folders],
        out=tmp_path / "best",
        page=tmp_path / "page.html",
        summary=tmp_path / "summary.json",
    )


def test_a_trial_changes_settings_and_the_model_and_is_known_by_what_it_changed(trials):
    training = json.loads((trials[0] / "model" / "training.json").read_text())
    assert training["recipe"]["name"] == "learning_rate=1e-2,n_layers=1"
    assert training["recipe"]["training"]["learning_rate"] == 1e-2
    assert training["recipe"]["training"]["steps"] == 12
    assert load_model(trials[0] / "model").config.n_layers == 1
    small = json.loads((trials[1] / "model" / "training.json").read_text())["recipe"]["training"]
    # Muon's learning rate keeps its ratio to it, as where pretraining itself is told.
    assert small["muon_learning_rate"] / small["learning_rate"] == pytest.approx(1.5)


def test_a_trial_that_cannot_be_says_why_and_ends_well(trials):
    note = json.loads((trials[2] / "model" / "failure.json").read_text())
    assert note["trial"] == "n_heads=7"
    assert "n_heads" in note["reason"]
    assert StageSummary.load(trials[2] / "summary").results == {"failure": note["reason"]}


def test_a_trial_that_diverges_fails_alone(tokens, tmp_path):
    result = pretrain_trial(
        tokens=tokens, out=tmp_path / "model", trial="learning_rate=1e30 optimizer=adamw clip_norm=0",
        summary=tmp_path / "summary", **SMALL | {"steps": 60},
    )  # fmt: skip
    assert "not finite" in result.results["failure"]
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["failure.json"]


def test_the_best_is_taken_on_with_its_summary_whatever_the_order_and_failed_ones_are_told(trials, tmp_path):
    for number, order in enumerate((trials, trials[::-1])):
        (tmp_path / str(number)).mkdir()
        result = choose(order, tmp_path / str(number)).results
        assert (result["best"], result["trials"], result["failed_trials"]) == ("learning_rate=1e-2,n_layers=1", 3, 1)
        summary = StageSummary.load(tmp_path / str(number) / "summary.json")
        assert summary.stage == "pretrain"
        assert summary.results["heldout_bits_per_byte"] == result["heldout_bits_per_byte"]
        mine = (tmp_path / str(number) / "best" / "model.safetensors").read_bytes()
        assert mine == (trials[0] / "model" / "model.safetensors").read_bytes()
        page = (tmp_path / str(number) / "page.html").read_text()
        assert page.index("learning_rate=1e-2") < page.index("learning_rate=1e-7") < page.index("n_heads=7")


def test_of_equals_the_smallest_is_the_best_then_the_first():
    def trial(bits, parameters=10):
        return Trial("x", bits, parameters, 1.0)

    assert best_trial([trial(2.0), trial(1.9), trial(1.8)]) == 2
    assert best_trial([trial(1.8, 20), trial(1.8, 10), trial(1.8, 10)]) == 1
    assert best_trial([trial(1.80000001, 10), trial(1.8, 20)]) == 0
    assert best_trial([Trial("x", math.inf, 0, 0.0, "out of memory"), trial(9.0)]) == 1


def test_where_every_trial_failed_the_reasons_are_told(trials, tmp_path):
    with pytest.raises(InputError, match=r"every trial of the sweep failed \(n_heads=7: .*n_heads"):
        choose(trials[2:], tmp_path)
    with pytest.raises(InputError, match="there was none"):
        choose([], tmp_path)
    assert not (tmp_path / "best").exists()


def test_a_trial_is_written_as_changes_with_their_types():
    assert parse_trial("learning_rate=1e-3 n_layers=2 optimizer=adamw dropout=0.1 compile=false") == {
        "learning_rate": 1e-3,
        "n_layers": 2,
        "optimizer": "adamw",
        "dropout": 0.1,
        "compile": False,
    }
    assert isinstance(parse_trial("n_layers=2")["n_layers"], int)
    assert parse_trial("") == {}
    assert trial_name("") == "unchanged"


@pytest.mark.parametrize("trial", ["learning_rate", "lr=3", "n_layers=", "steps=1 steps=2", "vocab_size=5"])
def test_what_is_no_change_ends_the_sweep_with_one_line(trial, tokens, tmp_path):
    with pytest.raises(InputError, match=rf"^trial '{trial}': "):
        pretrain_trial(tokens=tokens, out=tmp_path / "model", trial=trial, summary=tmp_path / "summary", **SMALL)
    assert not (tmp_path / "model").exists()


class Killed(BaseException):
    """The pod is stopped; nothing in the stage catches this."""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    folder = tmp_path / "workspace"
    folder.mkdir()
    monkeypatch.setenv("MODELCORE_WORKSPACE", str(folder))
    return folder


def test_a_trial_whose_pod_was_stopped_goes_on_in_the_next_and_leaves_nothing(tokens, tmp_path, workspace, monkeypatch):
    trial = {"tokens": tokens, "trial": "n_layers=1 checkpoint_every=2", **SMALL, "steps": 6}
    undisturbed = pretrain_trial(out=tmp_path / "other" / "model", summary=tmp_path / "other.json", **trial)
    assert list(workspace.rglob("*")) == [workspace / "trials"]

    saved = []

    def save(folder, step, *arguments, **named):
        saved.append(step)
        path = save_checkpoint(folder, step, *arguments, **named)
        if saved == [2, 4]:
            raise Killed
        return path

    monkeypatch.setattr("modelcore.training.checkpoints.save_checkpoint", save)
    pod = tmp_path / "pod"
    with pytest.raises(Killed):
        pretrain_trial(out=pod / "model", summary=tmp_path / "summary", **trial)
    shutil.rmtree(pod, ignore_errors=True)  # as its disk does
    resumed = pretrain_trial(out=pod / "model", summary=tmp_path / "summary", **trial)
    assert saved == [2, 4, 6]
    assert resumed.results["loss"] == undisturbed.results["loss"]
    assert list(workspace.rglob("*")) == [workspace / "trials"]


def test_a_trial_that_failed_leaves_nothing_in_the_workspace(tokens, tmp_path, workspace):
    failed = pretrain_trial(
        tokens=tokens, out=tmp_path / "model", summary=tmp_path / "summary", **SMALL | {"steps": 60},
        trial="learning_rate=1e30 optimizer=adamw clip_norm=0 checkpoint_every=1",
    )  # fmt: skip
    assert "failure" in failed.results
    assert not [path for path in workspace.rglob("*") if path != workspace / "trials"]
