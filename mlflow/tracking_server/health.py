"""Asks the server in this container whether it serves."""

import urllib.request

from tracking_server.errors import OperatorError
from tracking_server.settings import port


def check_health() -> None:
    """Returns if the server answers within four seconds.

    Raises:
        OperatorError: If it does not, or ``MLFLOW_PORT`` is no port.
    """
    address = f"http://127.0.0.1:{port()}/health"
    try:
        urllib.request.urlopen(address, timeout=4).close()
    except OSError as error:
        raise OperatorError(f"{address} does not answer: {error}") from None
