"""What the server is told, all of it by environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tracking_server.errors import OperatorError, one_line

BACKEND_STORE = "MLFLOW_BACKEND_STORE_URI"
ARTIFACTS = "MLFLOW_ARTIFACTS_DESTINATION"
ADMIN_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105 (a name)
SECRET_KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # noqa: S105 (a name)
ALLOWED_HOSTS = "MLFLOW_SERVER_ALLOWED_HOSTS"

# boto3 ends in a traceback where one of these is no number.
_NUMBERS = ("AWS_MAX_ATTEMPTS", "AWS_METADATA_SERVICE_TIMEOUT", "AWS_METADATA_SERVICE_NUM_ATTEMPTS")
_ENDPOINTS = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # the first that is set counts

LEAST_PASSWORD = 12  # characters, MLflow's own bound
LEAST_SECRET_KEY = 32  # characters: 128 bits, written as hexadecimal digits

DEFAULT_PORT = 5000


@dataclass(frozen=True)
class Stores:
    """Where runs and artifacts are kept.

    Args:
        database: ``postgresql://user:password@host/name``; holds a secret.
        artifacts: ``s3://bucket/prefix``. Endpoint and keys are read by boto3 itself, from ``MLFLOW_S3_ENDPOINT_URL``
            and ``AWS_…``.

    Raises:
        OperatorError: If either is no such address.
    """

    database: str = field(repr=False)
    artifacts: str

    def __post_init__(self) -> None:
        if not self.database.startswith("postgresql://"):  # the value stays untold: it holds a password
            raise OperatorError(f"{BACKEND_STORE} is no address of the form postgresql://user:password@host/name")
        if not self.artifacts.startswith("s3://") or not self.bucket:
            raise OperatorError(f'{ARTIFACTS} is "{self.artifacts}"; give s3://bucket or s3://bucket/prefix')

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.artifacts.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        """What the keys of all artifacts begin with: empty, or ending in a slash."""
        inner = self.artifacts.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{inner}/" if inner else ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Stores":
        """Reads the two addresses.

        Raises:
            OperatorError: If one is missing or no such address, S3's endpoint is none, or a number of boto3's is none.
        """
        _require(environment, BACKEND_STORE, ARTIFACTS)
        for name in _NUMBERS:
            _check_number(name, environment.get(name) or "1", 1)
        if endpoint := next((name for name in _ENDPOINTS if environment.get(name)), None):
            check_address(endpoint, environment[endpoint])
        return cls(environment[BACKEND_STORE], environment[ARTIFACTS])


def check_server_settings(environment: Mapping[str, str] = os.environ) -> Stores:
    """Checks everything that serving needs; MLflow reads the rest from the environment itself.

    Raises:
        OperatorError: If a variable is missing or cannot be right.
    """
    port(environment)
    _require(environment, BACKEND_STORE, ARTIFACTS, ADMIN_PASSWORD, SECRET_KEY, ALLOWED_HOSTS)
    for name, least in ((ADMIN_PASSWORD, LEAST_PASSWORD), (SECRET_KEY, LEAST_SECRET_KEY)):
        if len(environment[name]) < least:
            raise OperatorError(f"{name} has {len(environment[name])} characters; it needs {least} or more")
    return Stores.from_environment(environment)


def port(environment: Mapping[str, str] = os.environ) -> int:
    """The port that the server in this container listens at.

    Raises:
        OperatorError: If ``MLFLOW_PORT`` is none.
    """
    return _check_number("MLFLOW_PORT", environment.get("MLFLOW_PORT", str(DEFAULT_PORT)), 1, 65535)


def check_address(name: str, address: str) -> None:
    """Makes sure that the variable ``name`` holds the address of a server.

    Raises:
        OperatorError: If it does not; says the address without a password.
    """
    try:
        parts = urlsplit(address)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # What follows the host may be half a password with a slash in it, and libraries' errors would quote it.
        right = right and "@" not in parts.path + parts.query + parts.fragment
    except ValueError:  # the port is no number
        right = False
    if not right:
        raise OperatorError(
            f'{name} is "{one_line(address)}"; give http://host:port or https://host, '
            "special characters of a password percent-encoded"
        )


def _check_number(name: str, value: str, least: int, most: int | None = None) -> int:
    right = value.isascii() and value.isdigit() and least <= int(value) <= (most or int(value))
    if not right:
        raise OperatorError(f'{name} is "{value}"; give a number from {least}{f" to {most}" if most else " on"}')
    return int(value)


def _require(environment: Mapping[str, str], *names: str) -> None:
    if missing := [name for name in names if not environment.get(name, "").strip()]:
        raise OperatorError(f"not set: {', '.join(missing)}; mlflow/README.md says what each is")
