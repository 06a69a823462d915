"""A contest sets our figures beside each peer's, leaves out who cannot run, and fails only where we do."""

import os
from pathlib import Path

import pytest

from bench.benchmark import Options
from bench.gpu.contest import Contest, Peer
from bench.row import Row

MODULE = """
import sys
from bench.benchmark import main
from bench.gpu.contest import Contest, Peer
def ours(options):
    assert "torch" not in sys.modules
    return {"throughput": 30.0, "first token": 2.0, "MFU": 0.5}
def slow(options):
    print("number of parameters: 3")
    return {"throughput": 10.0, "first token": 8.0}
def broken(options):
    raise MemoryError("out of memory")
CONTEST = Contest(__spec__.name, "a small model", ours, {"slow": Peer(slow), "broken": Peer(broken)})
if __name__ == "__main__":
    main(CONTEST.rows, CONTEST.parts)
"""


def nobody(options):
    raise AssertionError("runs in a process of its own only")


@pytest.fixture
def contest(tmp_path, monkeypatch):
    """Makes a contest whose contenders are those of a module in a folder of its own."""
    name = f"contest_{os.getpid()}_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}")
    return lambda **peers: Contest(name, "a small model", nobody, peers)


def test_each_figure_that_both_have_is_a_row(contest):
    peers = contest(slow=Peer(nobody))
    assert list(peers.rows(Options())) == [
        Row(peers.name, "throughput", 30.0, "tok/s", "slow", 10.0),
        Row(peers.name, "first token", 2.0, "ms", "slow", 8.0),
    ]


def test_a_peer_that_fails_or_is_missing_is_left_out_and_the_reason_told(contest, capsys):
    peers = contest(
        broken=Peer(nobody), far=Peer(nobody, folder="nanogpt"), unknown=Peer(nobody, package="no_such_package")
    )
    assert list(peers.rows(Options())) == [
        Row(peers.name, "throughput", 30.0, "tok/s"),
        Row(peers.name, "first token", 2.0, "ms"),
        Row(peers.name, "MFU", 0.5, "fraction"),
    ]
    told = capsys.readouterr().err
    assert "broken FAILED and is left out:" in told
    assert "MemoryError: out of memory" in told
    assert "far is left out: no --peer nanogpt=FOLDER is given" in told
    assert "unknown is left out: the package no_such_package is not installed" in told


def test_a_failure_of_ours_is_the_benchmarks(tmp_path, monkeypatch):
    (tmp_path / "failing_contest.py").write_text(MODULE.replace("return {", "return {'throughput': 1 / 0, ", 1))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[3]}")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(Contest("failing_contest", "a small model", nobody, {"slow": Peer(nobody)}).rows(Options()))
