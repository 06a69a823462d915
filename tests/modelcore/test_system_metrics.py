"""A run's ``system/…`` metrics."""

import pytest

from modelcore import tracking
from modelcore.system_metrics import SystemMetrics


class Recorder(tracking.Run):
    """Keeps what is logged."""

    def __init__(self):
        self.logged = []

    def log_metrics(self, values, step=None):
        self.logged.append((step, values))


@pytest.mark.parametrize("seconds", ["60", "0.001"])
def test_even_the_shortest_stage_has_one_sample(monkeypatch, seconds):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", seconds)
    run = Recorder()
    SystemMetrics(run).finish()
    assert run.logged
    assert [step for step, _ in run.logged] == list(range(len(run.logged)))
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= run.logged[0][1].keys()
