"""The connection to S3: how long to wait, how often to try again, and what to say when it fails."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from modelcore.addresses import check_server
from modelcore.errors import InputError, first_line, without_password

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# A server that refuses connections is given 31 s, one that cannot be reached 91 s, one that is silent 6.5 minutes: six
# attempts, with these pauses between them. botocore's own retries come within half a second, and end where an answer
# begins.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60  # seconds; the second between two pieces of an answer

WORKERS = 4  # requests at a time
PART = 8 << 20  # bytes of one request; one more than WORKERS of them may be in memory at a time

_PASSING = {
    "BadDigest",
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_REFUSED = {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"}
_EXPIRED = {"ExpiredToken", "RequestExpired", "ExpiredTokenException", "TokenRefreshRequired"}
_ELSEWHERE = {"301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


class DamagedError(Exception):
    """What arrived is not what S3 says that it has; the message says how that was seen."""


class _StoppedError(Exception):
    """Another request failed for good."""


def client() -> Any:
    """The client that the process shares while its environment stays the same; threads may use it at the same time.

    Credentials, region and endpoint are found where boto3 always looks. Servers other than Amazon's are asked for
    ``host/bucket/key``, for few of them have a name for each bucket; ``addressing_style`` in AWS's configuration file
    decides otherwise.

    Raises:
        InputError: If boto3 is not installed, or the endpoint is no address.
    """
    return _client(tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith("AWS_"))))


@functools.lru_cache(maxsize=4)  # making one takes a third of a second; it renews temporary credentials by itself
def _client(environment: tuple[tuple[str, str], ...]) -> Any:
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
    except ImportError as error:
        raise InputError("s3:// needs boto3; install the extra 'storage'") from error
    named = {name: value for name, value in environment if value}
    if endpoint := next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if name in named), None):
        check_server(endpoint, named[endpoint])
    found = botocore.session.Session()
    session = boto3.session.Session(botocore_session=found)
    style = (found.get_scoped_config().get("s3") or {}).get("addressing_style")

    def make(style: str | None) -> Any:
        config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=WORKERS,
            retries={"mode": "standard", "total_max_attempts": 1},  # see patiently()
            # Content is checked in modelcore.s3.checksums, ranges and objects in many parts too.
            response_checksum_validation="when_required",
            s3={"addressing_style": style} if style else None,
        )
        try:
            return session.client("s3", config=config)
        except ValueError as error:  # the endpoint of the configuration file is no address
            raise InputError(f"{first_line(error)}; check endpoint_url in AWS's configuration file") from error

    if style is None and not dict(environment).keys().isdisjoint(("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
        style = "path"
    made = make(style)
    if style is None and not _is_amazons(made.meta.endpoint_url):  # the configuration file names another server
        made = make("path")
    return made


def patiently(address: str, request: Callable[[], Result], stop: threading.Event | None = None) -> Result:
    """The result of ``request``, which is made again after a pause while what fails may pass.

    Args:
        address: What it is about, for the log.
        request: Makes one request, and reads its answer to the end.
        stop: Ends the waiting when it is set.
    """
    for pause in (*PAUSES, None):
        try:
            return request()
        except Exception as error:
            if pause is None or not _may_pass(error):
                raise
            seconds = pause * random.uniform(0.75, 1.25)
            logger.warning("%s: %s; trying again in %.1f s", address, first_line(error), seconds)
            if (stop or threading.Event()).wait(seconds):
                raise _StoppedError from error
    raise AssertionError  # the last pause is None


class Workers:
    """Threads for requests at the same time, as a context manager; when the block fails their waiting ends too."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="s3")
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def patiently(self, address: str, request: Callable[[], Result]) -> Result:
        """As the function of that name; the waiting ends when another request has failed for good."""
        return patiently(address, request, self._stop)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results in the order of the items; no more than ``WORKERS`` are under way or waiting to be taken."""
        waiting: deque[Future[Result]] = deque()
        for item in items:
            if len(waiting) == WORKERS:
                yield waiting.popleft().result()
            waiting.append(self._pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def one_line_errors(uri: object) -> Iterator[None]:
    """Turns what boto3 raises into one line that names ``uri``."""
    try:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
            NoCredentialsError,
            ParamValidationError,
            PartialCredentialsError,
        )
    except ImportError as error:
        raise InputError(f"{uri}: s3:// needs boto3; install the extra 'storage'") from error
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InputError(
            f"{uri}: no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except ClientError as error:
        raise InputError(f"{uri}: {_explain(error)}") from error
    except (ConnectionError, HTTPClientError) as error:
        raise InputError(
            f"{uri}: the server cannot be reached, or went away: {first_line(error)}; "
            f"tried {f'{len(PAUSES) + 1} times' if PAUSES else 'once'}, check AWS_ENDPOINT_URL and the network"
        ) from error
    except ParamValidationError as error:  # such as a bucket's name that none can have; its first line says nothing
        raise InputError(f"{uri}: {without_password(str(error).splitlines()[-1])}") from error
    except (BotoCoreError, DamagedError) as error:
        raise InputError(f"{uri}: {first_line(error)}") from error


def error_code(error: Any) -> str:
    """S3's code of a ``ClientError``, or its HTTP status where an answer has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _explain(error: Any) -> str:
    code = error_code(error)
    if code == "NoSuchBucket":
        return "there is no such bucket"
    if code == "RequestTimeTooSkewed":
        return "the server's clock and this machine's differ by more than 15 minutes; set this machine's right"
    if code in _EXPIRED:
        return f"the credentials have expired ({code}); renew them"
    if code in _REFUSED:
        return f"access refused ({code}); check the credentials and what they may do"
    if code in _ELSEWHERE:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = error.response["Error"].get("Region") or headers.get("x-amz-bucket-region")
        return f"the bucket is in another region ({code}); set AWS_DEFAULT_REGION" + (f" to {region}" if region else "")
    if code in ("PreconditionFailed", "412"):
        return "the object changed while it was being read; run again to read it as it is now"
    if code == "InvalidObjectState":
        return "the object is archived; restore it first"
    return first_line(error)


def _may_pass(error: Exception) -> bool:
    from botocore.exceptions import (
        ClientError,
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
        ResponseStreamingError,
    )

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status == 429 or (status >= 500 and status != 501) or error_code(error) in _PASSING
    return isinstance(
        error, ConnectionError | HTTPClientError | IncompleteReadError | ResponseStreamingError | DamagedError
    )


def _is_amazons(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
