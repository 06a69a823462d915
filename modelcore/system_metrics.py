"""Use of processor, memory, disk, network and GPU, sampled in the background into a run's ``system/…`` metrics.

What is sampled, and under which names, is MLflow's, whose pages show it. Its own thread is not used: that asks the
server before every sample, ends for good at the first answer that does not come, and holds up who ends it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelcore import tracking

_DEFAULT_SECONDS = 2.0


class SystemMetrics:
    """Samples until :meth:`finish`, and at least once, however short that is.

    Args:
        run: Where the figures go.
    """

    def __init__(self, run: tracking.Run) -> None:
        self._run = run
        self._monitors = _monitors()
        self._seconds = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or _DEFAULT_SECONDS)
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system metrics", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Ends the sampling."""
        self._finished.set()
        self._thread.join()

    def _sample(self) -> None:
        step = 0
        with contextlib.suppress(Exception):  # a full disk, say, of which the stage itself will tell
            while True:
                for monitor in self._monitors:
                    monitor.collect_metrics()
                if self._finished.wait(self._seconds) and step:
                    return
                values: dict[str, float] = {}
                for monitor in self._monitors:
                    values |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
                self._run.log_metrics({f"system/{key}": value for key, value in values.items()}, step)
                step += 1


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for of_gpu in (GPUMonitor, ROCMMonitor):
        with contextlib.suppress(Exception):  # no such GPU, or no library that reads it
            monitors.append(of_gpu())
            break
    return monitors
