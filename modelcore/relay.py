"""Tracking through the process that drives a pipeline on this machine.

Importing mlflow takes a second or two and a hundred MiB, in every stage. Here the driver, which has imported it
anyway, listens at a Unix socket, and the stages tell it what to track. The socket lies in a folder that only its user
can open; ``MODELCORE_RELAY`` names it to the stages. A connection is one stage's run. Each way goes one JSON object a
line: ``{"method": …, "arguments": {…}}`` for a method of :class:`modelcore.tracking.Run`, answered with
``{"run_id": …}`` or ``{"failure": …, "disk_is_full": …}``. A stage in a container, which cannot reach MLflow, has the
driver call :mod:`modelcore.registry` too, a connection a call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelcore import tracking
from modelcore.atomic import disk_is_full
from modelcore.errors import InputError, first_line

ADDRESS = "MODELCORE_RELAY"
"""The environment variable that names the socket."""
URI = "relay"
"""What stands for MLflow's address where only the driver can reach it: in a container."""

_START = "start_stage"
_REGISTRY = "registry"
_METHODS = (
    "log_params",
    "log_metrics",
    "set_tags",
    "log_text",
    "log_chart",
    "log_path",
    "log_dataset",
    "known_id",
    "end",
)
_GRACE_SECONDS = 3.0  # for the runs of stages that were just ended


class RelayedRun(tracking.Run):
    """A stage's run, which the driver's process tracks.

    Args:
        address: The driver's socket.
        name: The stage's name.

    Raises:
        InputError: If the driver cannot be reached, or MLflow cannot be used.
    """

    def __init__(self, address: str, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._answers = self._socket.makefile("r", encoding="utf-8")
        try:
            self._socket.connect(address)
            self.run_id = self._tell(_START, name=name)
        except OSError as error:
            self._close()
            raise InputError(f"the pipeline's driver at {address} ({ADDRESS}) cannot be reached: {error}") from error
        except InputError:
            self._close()
            raise

    def known_id(self, patience: float) -> str | None:
        """The run's id, waited for at most ``patience`` seconds; None if it is not known then."""
        self.run_id = self._tell("known_id", patience=patience)
        return self.run_id

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs what the run was asked to do; a parameter logged before keeps its value."""
        self._tell("log_params", values={key: str(value) for key, value in values.items()})

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs figures, each finite one, at ``step`` of their curve."""
        self._tell("log_metrics", values={key: float(value) for key, value in values.items()}, step=step)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._tell("set_tags", values=dict(values))

    def log_text(self, text: str, file: str) -> None:
        """Stores ``text`` as the artifact ``file``."""
        self._tell("log_text", text=text, file=file)

    def log_chart(self, file: str, chart: tracking.Chart, *columns: tracking.Columns) -> None:
        """Draws a picture and stores it as the artifact ``file``; arguments as in :meth:`Run.log_chart`."""
        self._tell("log_chart", file=file, chart=chart, columns=[dict(column) for column in columns])

    def log_path(self, path: Path, folder: str | None = None) -> None:
        """Stores a file, or a folder's content, under the artifact folder ``folder``."""
        self._tell("log_path", path=str(Path(path).absolute()), folder=folder)

    def log_dataset(self, *, name: str, source: str, digest: str, rows: int, context: str) -> None:
        """Records that the run read a data set; arguments as in :meth:`Run.log_dataset`."""
        self._tell("log_dataset", name=name, source=source, digest=digest, rows=rows, context=context)

    def end(self, failure: str | None = None) -> None:
        """Ends the run: finished, failed with a reason, or killed where the reason is INTERRUPTED."""
        self._tell("end", failure=failure)
        self._close()

    def _tell(self, method: str, **arguments: Any) -> str | None:
        """Has the driver do it; returns the run's id."""
        try:
            self._socket.sendall(json.dumps({"method": method, "arguments": arguments}).encode() + b"\n")
            line = self._answers.readline()
        except OSError:
            line = ""
        run_id: str | None = _answered(line)["run_id"]
        return run_id

    def _close(self) -> None:
        self._answers.close()
        self._socket.close()


def ask_registry(function: str, arguments: Mapping[str, Any]) -> Any:
    """Has the driver call a function of :mod:`modelcore.registry`; returns what that returns, as plain values.

    Raises:
        InputError: If the driver cannot be reached, or says why it failed.
    """
    address = os.environ[ADDRESS]
    try:
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw", encoding="utf-8") as file:
            connection.connect(address)
            message = {"method": _REGISTRY, "arguments": {"function": function, "arguments": dict(arguments)}}
            file.write(json.dumps(message) + "\n")
            file.flush()
            line = file.readline()
    except OSError as error:
        raise InputError(f"the pipeline's driver at {address} ({ADDRESS}) cannot be reached: {error}") from error
    return _answered(line)["value"]


def _answered(line: str) -> dict[str, Any]:
    """The driver's answer.

    Raises:
        InputError: If there is none, or it is a failure.
        OSError: If the driver's disk is full.
    """
    if not line:
        raise InputError("the process that drives the pipeline is gone; start the run again under its name")
    answer: dict[str, Any] = json.loads(line)
    if "failure" in answer:
        if answer["disk_is_full"]:
            raise OSError(errno.ENOSPC, answer["failure"])
        if answer["is_away"]:
            from modelcore.registry import AwayError

            raise AwayError(answer["failure"])
        raise InputError(answer["failure"])
    return answer


class Relay:
    """Tracks the runs of the stages that are started while it is open; a context manager.

    Args:
        start: Begins the run of a stage, given the stage's name.
    """

    def __init__(self, start: Callable[[str], tracking.Run] = tracking.start_run_of_stage) -> None:
        self._start = start

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="modelcore-")  # a socket's name may have 100 characters
        self._server = _Server(f"{self._folder.name}/relay", _Connection, self._start)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        os.environ[ADDRESS] = str(self._server.server_address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.environ.pop(ADDRESS, None)
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.connections:
            connection.join(_GRACE_SECONDS)
        self._folder.cleanup()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True  # what keeps a connection open must not keep the driver from ending

    def __init__(
        self, address: str, handler: type[socketserver.BaseRequestHandler], start: Callable[[str], tracking.Run]
    ) -> None:
        super().__init__(address, handler)
        self.start_stage = start
        self.connections: list[threading.Thread] = []


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def setup(self) -> None:
        self.server.connections.append(threading.current_thread())
        super().setup()

    def handle(self) -> None:
        run, ended, value = tracking.Run(), False, None
        try:
            with contextlib.suppress(ConnectionError):
                for line in self.rfile:
                    if not line.endswith(b"\n"):  # its process was killed while it wrote
                        break
                    message = json.loads(line)
                    try:
                        if message["method"] == _START:
                            run = self.server.start_stage(message["arguments"]["name"])
                        elif message["method"] == _REGISTRY:
                            value, ended = _call_registry(**message["arguments"]), True
                        else:
                            if message["method"] not in _METHODS:
                                raise ValueError(f"{message['method']!r} is no method of a run")
                            tracking.call(run, message["method"], message["arguments"])
                            ended = message["method"] == "end"
                        answer: dict[str, Any] = {"run_id": run.run_id, "value": value}
                    except Exception as error:  # the stage's to report
                        full, away = disk_is_full(error), _is_away(message["method"], error)
                        answer = {"failure": _told(error), "disk_is_full": full, "is_away": away}
                    self.wfile.write(json.dumps(answer).encode() + b"\n")
        finally:
            if not ended:
                with contextlib.suppress(Exception):
                    run.end(failure="its process ended without a word; was it killed, for want of memory perhaps?")


def _call_registry(function: str, arguments: dict[str, Any]) -> Any:
    from modelcore import registry

    if function not in registry.REMOTE:
        raise ValueError(f"{function!r} is no function of the registry")
    value = registry.REMOTE[function](**arguments)
    return dataclasses.asdict(value) if isinstance(value, registry.RegisteredVersion) else value


def _is_away(method: str, error: Exception) -> bool:
    from modelcore import registry

    return method == _REGISTRY and registry.is_away(error)


def _told(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    return tracking.fault_of(error) or (
        first_line(error) if disk_is_full(error) else f"the run could not be tracked: {type(error).__name__}: {error}"
    )
