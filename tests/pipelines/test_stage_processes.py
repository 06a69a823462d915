"""The processes of a run's stages are found and ended, those of other runs are left alone."""

import subprocess
import sys

import psutil
import pytest

from pipelines.stage_processes import end_stages

# An executor with a worker of its own; it prints both process ids and then waits, as the worker does.
EXECUTOR = """
import os, signal, subprocess, sys
{signals}
worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(os.getpid(), worker.pid, flush=True)
signal.pause()
"""
DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
ORPHANED = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"


@pytest.fixture
def start():
    """Starts an executor for the pipeline folder ``root``; an orphan's parent has ended when this returns."""
    started = []

    def start(root, *, signals="", orphaned=False):
        line = [sys.executable, "-c", EXECUTOR.format(signals=signals), "kfp.dsl.executor_main", f"{root}/task/output"]
        process = subprocess.Popen(
            [sys.executable, "-c", ORPHANED, *line] if orphaned else line,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        pids = [int(word) for word in process.stdout.readline().split()]
        if orphaned:
            process.wait()
        assert len(alive(pids)) == 2
        return pids

    yield start
    for process in started:
        process.stdout.close()
        process.wait()


def alive(pids):
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("orphaned", [False, True])
@pytest.mark.parametrize("signals", ["", DEAF], ids=["", "deaf"])
def test_a_stage_and_its_workers_end_even_if_deaf_or_orphaned(start, tmp_path, monkeypatch, signals, orphaned):
    monkeypatch.setattr("pipelines.stage_processes.GRACE_SECONDS", 0.5)
    pids = start(tmp_path / "kfp", signals=signals, orphaned=orphaned)
    end_stages(tmp_path / "kfp")
    assert alive(pids) == []


@pytest.mark.parametrize("orphaned", [False, True])
def test_the_stages_of_another_run_go_on(start, tmp_path, orphaned):
    pids = start(tmp_path / "kfp-other", orphaned=orphaned)
    end_stages(tmp_path / "kfp", gently=False)
    assert alive(pids) == pids
    end_stages(tmp_path / "kfp-other", gently=False)
    assert alive(pids) == []
