"""KFP's server: whether it is there, its client, and what it says against a request in one line.

Its own client tries again and again, and tells of every time, before it fails.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from modelcore.errors import InputError, first_line

SECONDS = 10.0
HEALTH = "/apis/v2beta1/healthz"
PORTS = {"http": 80, "https": 443}
_SIGN_IN = (301, 302, 303, 307, 308, 401, 403)


def check_endpoint(address: str) -> None:
    """Asks the server at ``address`` whether it is KFP's. One that wants a user to sign in is left to the client.

    Raises:
        InputError: If the address is none, nothing answers there, or something else than KFP's API does.
    """
    url = _url(address)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port or PORTS[url.scheme], timeout=SECONDS)
    try:
        connection.request("GET", f"{url.path.rstrip('/')}{HEALTH}")
        answer = connection.getresponse()
        body = answer.read(1 << 16)
    except ssl.SSLCertVerificationError:
        return  # the client knows other certificates than Python does
    except (OSError, UnicodeError, http.client.HTTPException) as error:  # UnicodeError: a name that cannot be one
        raise InputError(
            f"no server answers at {url.geturl()} ({first_line(error)}); is it running, its port forwarded to this "
            "machine, and is it http:// or https://?"
        ) from None
    finally:
        connection.close()
    if answer.status in _SIGN_IN:
        return
    if answer.status >= 500:
        raise InputError(f"KFP at {address} answers {answer.status} {answer.reason}; its API server is not well")
    if answer.status >= 400 or not _is_object(body):
        raise InputError(
            f"what answers at {address} is not KFP's API ({answer.status}, {answer.getheader('Content-Type')}); "
            "give the address of KFP's API, such as http://localhost:8888"
        )


@contextlib.contextmanager
def connect(address: str, wish: str) -> Iterator[Any]:
    """KFP's client, of the server at ``address``, and its errors in one line.

    Args:
        address: KFP's API; without http:// or https:// it is the latter, as KFP's own command line has it.
        wish: What is asked of it, for the error: "the run".

    Raises:
        InputError: If there is no such server, or it or the client refuses something in the block.
    """
    check_endpoint(address)
    from kfp.client import Client

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it works with KFP 2 only, each time
            yield Client(host=_url(address).geturl())
    except InputError:
        raise
    except Exception as error:  # kfp's, its server package's or urllib3's
        raise InputError(f"KFP at {address} did not take {wish}: {_reason(error)}") from error


def _url(address: str) -> SplitResult:
    """The address with its scheme."""
    with contextlib.suppress(ValueError):
        url = urlsplit(address if "://" in address else f"https://{address}")
        if url.hostname and url.scheme in PORTS and url.port != 0:  # a port may be none: ValueError
            return url
    raise InputError(f"ENDPOINT is {address!r}; give the address of KFP's API, such as http://localhost:8888")


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


def _reason(error: Exception) -> str:
    """What the server said, where it is that; the first line of the error otherwise."""
    status, body = getattr(error, "status", None), getattr(error, "body", None)
    if not status:
        return first_line(error)
    try:
        said = str(json.loads(body)["message"])  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError):  # of something before it, in HTML
        said = str(getattr(error, "reason", ""))
    return f"{status} {said.splitlines()[0] if said else 'and no reason'}"
