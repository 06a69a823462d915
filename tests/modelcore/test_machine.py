"""What of the machine may be used: a container's limits count."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from modelcore import machine


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """Takes the files of a control group, and says that the process may run on eight cores."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def write(**files):
        for name, text in files.items():
            file = tmp_path / name.replace("__", "/").replace("_of_", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)

    return write


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000\n", 8), ("200000 100000\n", 2), ("150000 100000\n", 2), ("10000 100000\n", 1)]
)
def test_a_share_of_the_cores_time_counts_as_so_many_cores(limits, text, cores):
    limits(cpu_of_max=text)
    assert machine.available_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1\n", 8), ("400000\n", 4)])
def test_the_older_control_groups_are_understood_too(limits, quota, cores):
    limits(cpu__cpu_of_cfs_quota_us=quota, cpu__cpu_of_cfs_period_us="100000\n")
    assert machine.available_cores() == cores


def test_a_share_larger_than_the_machine_adds_no_cores(limits):
    limits(cpu_of_max="1600000 100000\n")
    assert machine.available_cores() == 8


@pytest.mark.parametrize("name", ["memory_of_max", "memory__memory_of_limit_in_bytes"])
def test_a_containers_memory_counts_where_it_is_less_than_the_machines(limits, name):
    limits(**{name: str(2**20)})
    assert machine.memory_limit() == 2**20
    limits(**{name: str(2**62)})
    assert machine.memory_limit() == psutil.virtual_memory().total


def test_without_control_groups_the_machine_is_what_there_is(limits):
    assert machine.available_cores() == 8
    assert machine.memory_limit() == psutil.virtual_memory().total


def test_a_process_knows_its_age_to_a_hundredth_of_a_second():
    code = (
        "import sys, time; began = float(sys.argv[1]); from modelcore.machine import process_seconds;"
        "print(time.monotonic() - began - process_seconds())"
    )
    began = time.monotonic()
    child = subprocess.run([sys.executable, "-c", code, str(began)], capture_output=True, text=True, check=True)
    assert -0.05 < float(child.stdout) < 60.0  # what is between is the time that starting it took
