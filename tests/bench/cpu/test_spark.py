"""The benchmark of Spark, which is too long for those that all run."""

from pathlib import Path

import pytest

from bench.benchmark import Options
from bench.cpu.spark import PEER, STAGES, WHO, rows


@pytest.mark.slow
def test_it_gives_speed_and_memory_of_each_stage_and_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    given = {(row.name, row.metric, row.peer) for row in rows(Options(small=True))}
    metrics = {("throughput", PEER), ("peak memory", PEER), *((f"peak memory of {who}", "") for who in WHO)}
    assert given == {(f"spark {stage} of 1 MB", *metric) for stage in STAGES for metric in metrics}
    assert not list(tmp_path.iterdir())
