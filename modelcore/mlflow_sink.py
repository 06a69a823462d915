"""Delivers a journal's entries to MLflow.

Whatever is done here may be done again, for an answer that was lost leaves unclear whether the server did it:

* A run carries its journal's id as the tag ``modelcore.attempt``. It is looked for before it is made; one that a
  request made which had been given up, and arrived late, is deleted when the run ends.
* MLflow's key of a metric is its name, step, time and value: the same point, with the time of the call, is stored once.
* A parameter keeps its value, a tag, an artifact and a status are set to what they are, a data set is known by digest.

This holds for MLflow's databases, of a server or direct. Its old store of plain files, which MLflow 3 refuses
unless asked for it (``MLFLOW_ALLOW_FILE_STORE``), writes a point twice.
"""

from __future__ import annotations

import os

from modelcore import tracking
from modelcore.delivery import UndeliveredError
from modelcore.errors import first_line, without_password
from modelcore.journal import Entry, Journal
from modelcore.mlflow_runs import MLflowRun, begin, cannot_be_used, delete_doubles, wrong_address

# A request that fails is made again by who delivers, so MLflow need not; and none may hang for minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_TIMEOUT, _LONGEST_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT", 600
_own_timeout = False  # whether it is this module's, and not the user's


def make_ready() -> None:
    """Imports what delivering needs, which takes seconds, and has MLflow say nothing and give up soon."""
    import mlflow.tracking  # noqa: F401

    global _own_timeout
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    _own_timeout = _own_timeout or _TIMEOUT not in os.environ
    for key, value in _PATIENCE.items():
        os.environ.setdefault(key, value)


def be_patient() -> None:
    """Takes back what :func:`make_ready` set for this process or the one that started it: MLflow's own patience."""
    global _own_timeout
    _own_timeout = False
    for key, value in _PATIENCE.items():
        if os.environ.get(key) == value:
            del os.environ[key]


def deliver(entries: list[Entry], run_id: str | None, journal: Journal) -> str:
    """Makes the calls of a journal's entries.

    Args:
        entries: One entry, or several that log metrics of one run.
        run_id: The run's id; None for the entry that begins it.
        journal: The journal, with the files that entries speak of.

    Returns:
        The run's id.

    Raises:
        UndeliveredError: If it could not be done.
    """
    first = entries[0]
    try:
        if first.method == "begin":
            return begin(tracking.Plan(**first.arguments), first.run, first.at)
        if run_id is None:
            raise UndeliveredError("its run has not been begun", "refused")
        arguments = dict(first.arguments)
        run = MLflowRun(run_id, owned=arguments.pop("owned", False), at=first.at)
        if first.method == "log_metrics":
            run.log_points([(entry.arguments["values"], entry.arguments["step"], entry.at) for entry in entries])
        else:
            if first.method == "log_path":
                arguments["path"] = journal.kept(arguments)
                if arguments["path"] is None:
                    raise UndeliveredError(f"{first.arguments.get('path')!r} is no file of the journal", "refused")
            if first.method == "end":
                delete_doubles(first.run, run_id)
            tracking.call(run, first.method, arguments)
    except UndeliveredError:
        raise
    except Exception as error:
        if "timed out" in str(error):
            _set_timeout(longer=True)
        reason = undelivered(error)
        if reason.kind == "refused" and first.method != "begin":
            reason = UndeliveredError(first_line(error), "refused")
        raise reason from error
    _set_timeout(longer=False)
    return run_id


def undelivered(error: Exception) -> UndeliveredError:
    """What an error of MLflow's, or of what it stores artifacts with, means for a call."""
    from mlflow.exceptions import MlflowException

    text, status, library = str(error), 400, type(error).__module__.partition(".")[0]
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif library == "requests":  # artifacts
        status = getattr(getattr(error, "response", None), "status_code", 503)
    elif library in ("botocore", "boto3", "urllib3", "sqlalchemy") or _is_of_a_device(error):
        status = 503
    # An address that does not exist, a certificate that is not trusted, a page that is not MLflow's.
    wrong = ["Name or service not known", "nodename nor servname", "CERTIFICATE_VERIFY_FAILED", "not in a valid JSON"]
    # A run that is not there, or was deleted: the calls may belong to another server, and must not be thrown away.
    wrong.append("must be in the 'active' state")
    if (
        status in (401, 403)
        or wrong_address()
        or getattr(error, "error_code", "") in ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST")
        or any(w in text for w in wrong)
    ):
        return UndeliveredError(cannot_be_used(error), "denied")
    if status in (408, 429) or status >= 500:
        return UndeliveredError(_innermost(error), "away")
    return UndeliveredError(cannot_be_used(error), "refused")


def _is_of_a_device(error: Exception) -> bool:
    """Whether a disk or a network failed, which may be better soon; a file that is missing stays so."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _innermost(error: BaseException) -> str:
    """Why the server is away, in one line: the error that began it, for the library's own lines are long."""
    uri = without_password(os.environ["MLFLOW_TRACKING_URI"])
    cause = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    return f"MLflow at {uri} cannot be reached: {first_line(cause)[:300]}"


def _set_timeout(*, longer: bool) -> None:
    """Doubles the time for the next request, for a server that needs longer would never be done; or takes that back."""
    if _own_timeout:
        seconds = min(2 * int(os.environ[_TIMEOUT]), _LONGEST_TIMEOUT) if longer else int(_PATIENCE[_TIMEOUT])
        os.environ[_TIMEOUT] = str(seconds)
