"""Opens a service of the cluster at a free port of this machine, for as long as it is needed."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from typing import IO

from pipelines.kind.programs import ProgramError, find, kubectl_line

_OPEN = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def forward(namespace: str, service: str, port: int, local: int | None = None) -> Iterator[str]:
    """Forwards a local port to a service's while the block runs.

    Args:
        namespace: The service's namespace.
        service: Its name.
        port: Its port.
        local: The port here; None: any that is free.

    Yields:
        The address here, ``http://127.0.0.1:port``.

    Raises:
        ProgramError: If kubectl ends before the port is open.
    """
    words = ["-n", namespace, "port-forward", "--address", "127.0.0.1", f"service/{service}", f"{local or ''}:{port}"]
    name, *arguments = kubectl_line(words)
    line = [find(name) or name, *arguments]
    process = subprocess.Popen(  # noqa: S603 (no shell)
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for this program, which ends the forwarding itself
    )
    reader: threading.Thread | None = None
    with process:  # waits for its end, and closes the pipe
        try:
            assert process.stdout is not None  # noqa: S101 (for mypy)
            said: deque[str] = deque(maxlen=5)
            for text in process.stdout:
                said.append(text.strip())
                if match := _OPEN.search(text):
                    break
            else:
                raise ProgramError(f"the service {service} in {namespace} cannot be reached: {' | '.join(said)}")
            reader = threading.Thread(target=_drain, args=(process.stdout,), daemon=True)
            reader.start()
            yield f"http://127.0.0.1:{match.group(1)}"
        finally:
            process.kill()
            if reader is not None:
                reader.join()


def _drain(stream: IO[str]) -> None:
    """Reads what is said of each connection, so that kubectl never waits for a reader."""
    for _ in stream:
        pass
