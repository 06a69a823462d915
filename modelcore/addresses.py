"""Addresses of servers that the environment names."""

from __future__ import annotations

from urllib.parse import urlsplit

from modelcore.errors import InputError, without_password


def check_server(name: str, address: str) -> None:
    """Makes sure that the variable ``name`` holds the address of an HTTP server.

    What is read another way than it was meant, such as a password with a slash in it, is refused here: the libraries'
    errors would quote pieces of it.

    Raises:
        InputError: If it does not; says the address without a password.
    """
    try:
        parts = urlsplit(address)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        right = right and "@" not in parts.path + parts.query + parts.fragment
    except ValueError:  # the port is no number
        right = False
    if not right:
        raise InputError(
            f'{name} is "{without_password(address)}"; give http://host:port or https://host, '
            "special characters of a password percent-encoded"
        )
