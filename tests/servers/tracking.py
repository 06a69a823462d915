"""The tracking server for tests: what its image starts, in this environment."""

import os
import secrets
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.servers import postgres
from tests.servers.ports import free_ports

PROGRAM = Path(__file__).parents[2] / "mlflow"
DEADLINE = 120  # seconds; it takes some ten on a quiet machine

# Neither the settings of who runs the tests nor those that a test makes for its own client reach the server.
_FOREIGN = ("MLFLOW_", "AWS_", "PG", "COVERAGE_")


class TrackingServer:
    """``python -m tracking_server`` with the settings of one server.

    Args:
        database: Address of its PostgreSQL database.
        artifacts: ``s3://bucket/prefix``.
        s3: The environment that names the S3 server and its keys.
        folder: Where its log goes.
    """

    def __init__(self, database, artifacts, s3, folder):
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.password = secrets.token_urlsafe(18)
        self.secret_key = secrets.token_hex(32)
        self.log = folder / f"tracking-server-{self.port}.log"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self.environment |= s3
        self.environment |= {
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secret_key,
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{self.port},mlflow.example.org:{self.port}",
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(self.port),
            "PYTHONPATH": str(PROGRAM),
            "PATH": f"{postgres.programs()}:{os.environ['PATH']}",  # pg_dump and psql of its own version
        }
        self._process = None

    def run(self, *arguments, **options):
        """Runs another of its commands, such as ``backup``, to its end."""
        command = [sys.executable, "-m", "tracking_server", *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE, check=False, **options
        )

    def start(self, popen=subprocess.Popen):
        """Starts it, as ``popen`` starts a process, and waits until it serves."""
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "tracking_server", "serve"]
            self._process = popen(command, env=self.environment, stdout=log, stderr=log)
        self.wait(lambda: self._process.poll() is None, self.log.read_text)

    def wait(self, lives, log):
        """Waits until it serves, whoever started it: while ``lives()``, and with ``log()`` to tell if it never does."""
        deadline = time.monotonic() + DEADLINE
        while not self._serves():
            assert lives(), f"the server ended: {log()}"
            assert time.monotonic() < deadline, f"the server does not answer: {log()}"
            time.sleep(0.1)

    def _serves(self):
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=10).close()
        except OSError:
            return False
        return True

    @property
    def pid(self):
        return self._process.pid

    def stop(self):
        """Asks it to end, as a container's engine does, and returns its exit status."""
        if self._process is None:
            return None
        self._process.terminate()
        status = self._process.wait(timeout=30)
        self._process = None
        return status

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
