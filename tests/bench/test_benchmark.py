"""A benchmark is a module; parts of it run in processes of their own."""

import os
from pathlib import Path

import pytest

from bench.benchmark import Options, in_fresh_process

MODULE = """
import os, sys
from bench.benchmark import main
def given(options):
    print("noise")
    return {"small": options.small, "peers": sorted(options.peers), "pid": os.getpid()}
def failing(options):
    raise ValueError("no such thing")
def together(options):
    from modelcore import launch
    print("noise")
    return {"processes": launch.world_size(), "rank": launch.rank()}
main(lambda options: [], {"given": given, "failing": failing, "together": together})
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"made_benchmark_{os.getpid()}_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    return name


def test_a_part_is_told_the_options_in_a_process_of_its_own(module, tmp_path):
    (tmp_path / "model.py").touch()
    found = in_fresh_process(module, "given", Options(small=True, peers={"nanogpt": tmp_path}))
    assert (found["small"], found["peers"]) == (True, ["nanogpt"])
    assert found["pid"] != os.getpid()


def test_a_part_that_fails_says_why(module):
    with pytest.raises(RuntimeError, match=r"(?s)--part failing failed \(1\): .*ValueError: no such thing") as error:
        in_fresh_process(module, "failing", Options())
    assert module in str(error.value)


def test_a_part_of_several_processes_is_told_by_the_first(module):
    assert in_fresh_process(module, "together", Options(), processes=2) == {"processes": 2, "rank": 0}
