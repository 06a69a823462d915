"""The frame around every stage: summary, memory, failure."""

import subprocess
import sys

import numpy as np
import pytest

from modelcore.errors import InputError
from modelcore.loading import loading
from modelcore.stages.stage import Stage, StageSummary, peak_memory_mib


def test_the_summary_is_written_when_the_block_ends_well(tmp_path):
    with Stage("demo", {"k": 3}, summary=tmp_path / "s.json") as stage:
        stage.results["loss"] = 1.5
        stage.results["note"] = "fine"
        stage.series["curve"] = {"step": [1, 2], "loss": [2.0, 1.5]}
    read = StageSummary.load(tmp_path / "s.json")
    assert read == stage.summary
    assert (read.stage, read.parameters, read.results["loss"]) == ("demo", {"k": 3}, 1.5)
    assert read.seconds > 0
    assert read.peak_memory_mib > 10


def test_numbers_leave_out_texts_truth_values_and_what_is_not_finite():
    summary = StageSummary("demo", results={"a": 1, "b": "x", "c": True, "d": float("nan"), "e": 2.5})
    assert summary.numbers() == {
        "a": 1.0,
        "e": 2.5,
        "stage_seconds": 0.0,
        "work_seconds": 0.0,
        "peak_memory_mib": 0.0,
    }


def test_the_time_at_work_is_the_blocks_own_without_loading_libraries(monkeypatch):
    clock = iter([100.0, 103.0, 110.0, 115.5])  # the block begins, loading begins and ends, the block ends
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Stage("demo", {}) as stage:
        with loading():
            pass
    assert stage.summary.work_seconds == 15.5 - 7


def test_a_stages_process_ends_without_collecting_garbage():
    code = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"  # called after what is registered later
        "from modelcore.stages.stage import Stage\n"
        "with Stage('demo', {}):\n"
        "    pass\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "True\n"


def test_a_failed_block_writes_no_summary_and_raises_on(tmp_path):
    with pytest.raises(InputError, match="bad"), Stage("demo", {}, summary=tmp_path / "s.json"):
        raise InputError("bad")
    assert not (tmp_path / "s.json").exists()


def test_peak_memory_sees_an_allocation_that_is_gone_again():
    before = peak_memory_mib()
    size = int(before * 2**20)
    np.ones(size, dtype=np.uint8)[0] = 2
    assert peak_memory_mib() > before * 1.5


def test_peak_memory_is_the_process_own_not_what_its_parent_used():
    """getrusage would report the parent's peak in a child that was started by fork and exec."""
    np.ones(400 * 2**20, dtype=np.uint8)
    code = "from modelcore.stages.stage import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < 400


def test_an_input_error_ends_a_stage_process_with_one_line_and_without_traceback():
    code = (
        "from modelcore.stages.stage import Stage\n"
        "from modelcore.errors import InputError\n"
        "with Stage('demo', {}):\n"
        "    raise InputError('corpus x is empty; give it some text')\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "Traceback" not in child.stderr
    assert "error: corpus x is empty; give it some text" in child.stderr.splitlines()
