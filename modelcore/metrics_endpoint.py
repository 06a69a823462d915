"""What training reports, for Prometheus to read: ``http://HOST:PORT/metrics`` while ``MODELCORE_METRICS_PORT`` is set.

MLflow keeps a run's curves; this shows only the newest point of them, for dashboards and alerts. Format:
https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Self

from modelcore import launch
from modelcore.errors import InputError

logger = logging.getLogger(__name__)

PORT_VARIABLE = "MODELCORE_METRICS_PORT"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FIGURES = {
    "step": "Steps done.",
    "loss": "Training loss, nats a token, mean of the steps since the point before; NaN where none was taken.",
    "bits_per_byte": "Training loss in bits a byte of text.",
    "heldout_bits_per_byte": "Loss on held-out text in bits a byte, at the latest evaluation.",
    "learning_rate": "Learning rate of the step.",
    "gradient_norm": "Norm of the gradient before clipping; NaN where no step was taken.",
    "tokens_per_second": "Tokens trained on a second, of all processes together.",
    "mfu": "Model FLOPs utilization, 0 to 1, of all devices together.",
    "slowest_rank": "Number of the process whose own work took longest, of several.",
    "slowest_rank_seconds": "Seconds a step of that process's own work.",
    "median_rank_seconds": "Seconds a step of the median process's own work.",
    "slowest_to_median": "The slowest process's time over the median one's; 1 where all are alike.",
    "slowest_rank_tokens_per_second": "Tokens a second that all would reach if nobody were faster and nobody waited.",
    "reported_timestamp_seconds": "When the newest figure was reported, in seconds since 1970.",
}
"""What each metric says; its name is the key after ``modelcore_``, and all are gauges."""


class MetricsEndpoint:
    """A small HTTP server in a thread of this process.

    Args:
        port: Where it listens, on every address of this machine; 0: at a free one.
        stage: The stage whose figures they are.

    Raises:
        OSError: If nobody may listen there.
    """

    def __init__(self, port: int, stage: str) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # a tenth of a second, for few stages

        self._stage = stage
        self._values: dict[str, float] = {}
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10.0  # seconds, for who connects and asks nothing

            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == "/metrics"
                body = endpoint.text().encode() if found else b"ask for /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """Says nothing: it is asked every few seconds."""

        self._server = ThreadingHTTPServer(("", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        # It looks that often whether it is to end, so a stage's end waits no longer.
        serve = functools.partial(self._server.serve_forever, poll_interval=0.05)
        threading.Thread(target=serve, name="metrics endpoint", daemon=True).start()

    @classmethod
    def from_environment(cls, stage: str) -> Self | None:
        """The endpoint that ``MODELCORE_METRICS_PORT`` asks for; None where it is not set, and on ranks but the first.

        A port that cannot be had is told in the log and ends no training.

        Raises:
            InputError: If the variable holds no port.
        """
        given = os.environ.get(PORT_VARIABLE)
        if not given or launch.rank() > 0:
            return None
        if not (given.isdecimal() and int(given) < 65536):
            raise InputError(f"{PORT_VARIABLE} is {given!r}; give a port, such as 9464")
        try:
            return cls(int(given), stage)
        except OSError as error:
            logger.warning("no metrics at port %s: %s", given, error)
            return None

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes figures of a step; those that are not among :data:`FIGURES` are left out."""
        known = {name: float(value) for name, value in figures.items() if name in FIGURES}
        # A new dictionary at once: a request that comes meanwhile sees one step's figures and not two's.
        self._values = self._values | known | {"step": float(step), "reported_timestamp_seconds": time.time()}

    def text(self) -> str:
        """All figures in Prometheus' text format."""
        values = self._values
        lines = []
        for name, means in FIGURES.items():
            if name in values:
                lines.append(f"# HELP modelcore_{name} {means}")
                lines.append(f"# TYPE modelcore_{name} gauge")
                # repr writes nan and inf, which the format takes in any case
                lines.append(f'modelcore_{name}{{stage="{self._stage}"}} {values[name]!r}')
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
