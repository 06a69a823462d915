"""The benchmarks on a GPU as `make bench-gpu` runs them, in tiny."""

import importlib

import pytest

from bench.__main__ import run
from bench.benchmark import Options
from bench.gpu import BENCHMARKS, PEERS
from bench.machine import Machine
from bench.row import read_rows


def test_every_benchmark_is_a_module_and_every_folder_is_asked_for():
    folders = set()
    for name in BENCHMARKS:
        module = importlib.import_module(f"bench.gpu.{name}")
        contest = getattr(module, "CONTEST", None)
        if contest is None:
            assert callable(module.rows)
        else:
            assert contest.name.split()[0] == name
            folders |= {peer.folder for peer in contest.peers.values() if peer.folder}
    assert folders == set(PEERS)


@pytest.mark.slow
def test_benchmarks_give_rows_in_processes_of_their_own(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out, names = tmp_path / "rows.jsonl", ["gpt2_training", "int8_decoding", "gpt2_loss_curves", "training_from_disk"]
    assert run("bench.gpu", names, Options(small=True), Machine("gpu-test", {}), out) == 0
    assert {row.benchmark for row in read_rows(out)} == set(names)
    assert (tmp_path / "gpt2_loss_curves.curves.json").exists()
    told = capfd.readouterr().err
    assert "nanoGPT is left out: no --peer nanogpt=FOLDER is given" in told
    assert "FAILED" not in told
