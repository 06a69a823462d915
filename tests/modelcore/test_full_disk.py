"""A disk that is really full: whatever is being written, one line says so, and what was there before is still there."""

import shutil

import pytest
import torch

from modelcore.adapters import LoRAConfig, add_lora, save_adapter
from modelcore.atomic import atomic_directory, write_text
from modelcore.convert import convert
from modelcore.data.shards import write_tokens
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import save_model
from modelcore.stages.stage import Stage, StageSummary
from modelcore.stages.train_tokenizer import train_tokenizer
from modelcore.stages.validate_data import validate_data
from modelcore.stages.write_report import write_report
from modelcore.tokenizers import Tokenizer
from modelcore.training import TrainingSettings
from modelcore.training.checkpoint_list import latest_checkpoint
from modelcore.training.optimizer import Optimizer
from modelcore.training.state import save_checkpoint

TEXT = "".join(f"Mr. Knightley had said it {n} times, and Emma had heard it {n * 7 % 31} times.\n" for n in range(900))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    (folder / "text.txt").write_text(TEXT)
    train_tokenizer(corpus=folder / "text.txt", out=folder / "tokenizer", vocab_size=320)
    with atomic_directory(folder / "model") as fresh:
        save_model(fresh, make_model(), folder / "tokenizer" / "tokenizer.model")
    return folder


def make_model():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=320, context_length=16, n_layers=2, d_model=64, n_heads=2, n_kv_heads=2, d_ff=128))


def weights(sample, out):
    with atomic_directory(out) as fresh:
        save_model(fresh, make_model(), sample / "tokenizer" / "tokenizer.model")


def adapter(sample, out):
    model = make_model()
    add_lora(model, LoRAConfig(rank=8, alpha=8.0, dropout=0.0, targets=()))
    with atomic_directory(out) as fresh:
        save_adapter(fresh, model, base=sample / "model")


def checkpoint(sample, out):
    model = make_model()
    settings = TrainingSettings(steps=2, batch_size=1, sequence_length=16, learning_rate=1e-3)
    parts = {"optimizer": Optimizer(model, settings)}
    save_checkpoint(out, 1, model, parts, identity={}, progress={}, random={}, keep=1)


def export(sample, out):
    convert(sample / "model", out, "huggingface")


def shards(sample, out):
    texts = [TEXT] * 3
    write_tokens(out, Tokenizer.load(sample / "tokenizer"), train=texts, heldout=texts)


def tokenizer(sample, out):
    train_tokenizer(corpus=sample / "text.txt", out=out, vocab_size=330)


def documents(sample, out):
    folders = {f"{name}_out": out / name for name in ("train", "heldout", "quarantine", "docs")}
    validate_data(corpus=str(sample / "text.txt"), **folders)


def report(sample, out):
    summary = StageSummary("pretrain", results={"note": "x" * 20_000})
    summary.save(sample / "pretrain.json")
    write_report(summaries=[sample / "pretrain.json"], out=out)


def text(sample, out):
    write_text(out, TEXT)


def snapshot(path):
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {file: file.read_bytes() for file in files}


@pytest.mark.parametrize("room", [0, 12 << 10])
@pytest.mark.parametrize(
    "write",
    [weights, adapter, checkpoint, export, shards, tokenizer, documents, report, text],
    ids=lambda w: w.__name__,
)
def test_a_writer_on_a_full_disk_says_so_in_one_line_and_loses_nothing(sample, small_disk, write, room):
    out = small_disk.folder / "out"
    write(sample, out)
    before = snapshot(out)
    small_disk.fill(room)
    with pytest.raises(InputError, match="no space left on the disk") as caught:
        write(sample, out)
    assert "\n" not in str(caught.value)
    assert snapshot(out) == before
    assert sorted(path.name for path in small_disk.folder.iterdir()) == ["filler", "out"]


def test_the_last_checkpoint_is_still_good_and_the_run_goes_on_from_it(sample, small_disk):
    folder = small_disk.folder / "training"
    checkpoint(sample, folder)
    small_disk.fill(room=12 << 10)
    with pytest.raises(InputError, match="no space left"):
        checkpoint(sample, folder)
    assert latest_checkpoint(folder).name == "step-00000001"


@pytest.fixture
def tracked_on(small_disk, mlflow_store, monkeypatch):
    """MLflow's database and artifacts on the small disk."""
    from modelcore import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store[0])
    tracking.ensure_experiment(mlflow_store[1])  # makes the tables, which takes seconds, once a process
    shutil.copy(mlflow_store[0].removeprefix("sqlite:///"), small_disk.folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "full-disk")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{small_disk.folder / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "60")
    tracking.ensure_experiment(small_disk.folder / "artifacts")
    return small_disk


def test_mlflow_artifacts_and_database_on_a_full_disk_are_one_line_too(tracked_on, tmp_path, caplog):
    (tmp_path / "page.html").write_text("x" * 50_000)
    with pytest.raises(InputError, match="no space left on the disk") as caught:
        with Stage("demo", {}) as stage:
            tracked_on.fill(room=4 << 10)
            stage.run.log_path(tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no space left on the disk"), Stage("demo", {}):
        pass


def test_a_summary_that_no_longer_fits_fails_the_stage(small_disk):
    with pytest.raises(InputError, match="no space left on the disk"):
        with Stage("demo", {}, summary=small_disk.folder / "s.json") as stage:
            stage.results["note"] = "x" * 50_000
            small_disk.fill(room=4 << 10)
    assert not (small_disk.folder / "s.json").exists()
