"""Whether a server of Kubeflow Pipelines can be reached at all: ``python -m pipelines.endpoint ADDRESS``.

KFP's own client tries again and again, and tells of every time, before it fails.
"""

from __future__ import annotations

import socket
import sys
from urllib.parse import urlsplit

from modelcore.errors import InputError

SECONDS = 10.0
PORTS = {"http": 80, "https": 443}


def check_endpoint(address: str) -> None:
    """Opens a connection to the server at ``address``, as KFP's client takes it, and closes it again.

    Raises:
        InputError: If the address is none, or nothing answers there.
    """
    try:
        url = urlsplit(address if "://" in address else f"http://{address}")
        host, port = url.hostname, url.port or PORTS.get(url.scheme)
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise InputError(f"ENDPOINT is {address!r}; give the address of KFP's API, such as http://localhost:8888")
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one
        raise InputError(
            f"no server answers at {address} ({error}); is it running, and its port forwarded to this machine?"
        ) from None


if __name__ == "__main__":
    try:
        check_endpoint(sys.argv[1])
    except InputError as fault:
        sys.stderr.write(f"error: {fault}\n")
        sys.exit(1)
