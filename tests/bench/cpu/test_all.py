"""Each benchmark on a CPU goes through its motions, and gives the rows that it is there for."""

import importlib
from pathlib import Path

import pytest

from bench.benchmark import Options
from bench.cpu import BENCHMARKS, PEERS, TRAINING
from modelcore.errors import InputError

HUGGING_FACE = "Hugging Face"
ROWS = {
    "processor": {("speed", "")},
    "training": {
        ("throughput", HUGGING_FACE),
        ("throughput", "Hugging Face, our precision and kernels"),
        ("throughput", ""),
        ("MFU", HUGGING_FACE),
        ("peak memory", HUGGING_FACE),
    },
    "decoding": {
        ("throughput", HUGGING_FACE),
        ("throughput", "ours in fp32"),
        ("share of the bandwidth's roof", HUGGING_FACE),
        ("share of the bandwidth's roof", ""),
        ("time to the first token", HUGGING_FACE),
        ("time to the first token", "ours in fp32"),
    },
    "first_token": {("import", HUGGING_FACE), ("import, load and first token", HUGGING_FACE)},
    "tokenization": {("throughput", "SentencePiece, batch"), ("throughput", "Hugging Face tokenizers, batch")},
    "loader": {("from disk", "ours in memory"), ("in memory", "torch DataLoader, in memory")},
    "checkpoints": {
        ("save", "torch.save"),
        ("load", "torch.load"),
        ("save", "save_pretrained"),
        ("load and first pass", "from_pretrained"),
    },
    "sharded_checkpoints": {
        ("save", "torch DCP"),
        ("load", "torch DCP"),
        ("a step waits", "torch DCP, async_save"),
    },
    "stages": {("start-up", "")},
}


# These start several processes, which import much.
LONG = ("training", "first_token", "sharded_checkpoints")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in BENCHMARKS])
def test_a_benchmark_gives_its_rows(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    settings = {} if name in TRAINING else {"learning_rate": "fast"}  # has no effect there
    rows = list(importlib.import_module(f"bench.cpu.{name}").rows(Options(small=True, settings=settings)))
    assert {(row.metric, row.peer) for row in rows} == ROWS[name]
    assert {row.benchmark for row in rows} == {name}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TRAINING)
def test_what_trains_takes_the_settings_asked_for(name):
    with pytest.raises(InputError, match="learning_rate"):
        list(importlib.import_module(f"bench.cpu.{name}").rows(Options(small=True, settings={"learning_rate": "fast"})))


def test_the_peer_that_needs_a_folder_is_llama_cpp():
    assert PEERS == ("llamacpp",)
