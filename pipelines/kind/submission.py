"""Submits the compiled pipeline with kfp's own command line, and waits for the run."""

from __future__ import annotations

import datetime
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from modelcore.errors import first_line
from pipelines.compile import COMPILED
from pipelines.kind.inputs import as_kfp_reads
from pipelines.kind.programs import ProgramError, run

EXPERIMENT = "aic-ai-poc-gpt"
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
RUN_SECONDS = 4 * 3600.0  # by when a run has ended
LOST_SECONDS = 60.0  # how long the API server may be away meanwhile
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        run_id: KFP's id of it.
        state: One of ENDED.
        seconds: From its creation to its end.
        failure: What KFP says of it where it did not succeed.
    """

    run_id: str
    state: str
    seconds: float
    failure: str


def under_way(address: str, name: str) -> str | None:
    """The id of the run of that name that has begun and not ended, or None.

    Args:
        address: KFP's API, ``http://host:port``.
        name: The run's name.
    """
    client = _client(address)
    try:
        experiment = client.get_experiment(experiment_name=EXPERIMENT)
    except ValueError:  # the first run makes it
        return None
    found = client.list_runs(experiment_id=experiment.experiment_id, page_size=100, sort_by="created_at desc").runs
    return next((run.run_id for run in found or [] if run.display_name == name and run.state not in ENDED), None)


def submit(address: str, name: str, parameters: Sequence[str]) -> str:
    """Starts a run of the pipeline.

    Args:
        address: KFP's API, ``http://host:port``.
        name: The run's name.
        parameters: ``key=value``, as ``kfp run create`` takes them; of one given twice the last counts.

    Returns:
        The run's id.

    Raises:
        ProgramError: If KFP refuses it.
    """
    words = ["-e", EXPERIMENT, "-r", name, "-f", str(COMPILED), *as_kfp_reads(parameters)]
    said = run("kfp", "--endpoint", address, "--output", "json", "run", "create", *words, quiet=True)
    try:
        return str(json.loads(said[said.index("\n{") :])["run_id"])  # after two lines with links
    except (ValueError, KeyError, TypeError):
        raise ProgramError("kfp run create does not say which run it has made") from None


def wait(connect: Callable[[], AbstractContextManager[str]], run_id: str) -> Ended:
    """Waits until a run has ended, telling each stage that begins or ends.

    kfp's own waiting knows no end for a run that is cancelled, and gives up at the first connection that breaks.

    Args:
        connect: Opens KFP's API and gives its address; called again when the connection is lost.
        run_id: The run.

    Raises:
        ProgramError: If the run has not ended in RUN_SECONDS, or the API server is away for LOST_SECONDS.
    """
    told: dict[str, str] = {}
    began = heard = time.monotonic()
    while True:
        try:
            with connect() as address:
                for found in _states(address, run_id):
                    heard = time.monotonic()
                    _tell(found, told)
                    if found.state in ENDED:
                        return _ended(found)
                    if heard - began > RUN_SECONDS:
                        raise _StillRunningError(f"the run {run_id} has not ended in {RUN_SECONDS / 3600:.0f} hours")
        except _StillRunningError:
            raise
        except Exception as error:  # kubectl's, kfp's or urllib3's
            if time.monotonic() - heard > LOST_SECONDS:
                raise ProgramError(f"KFP's API server is away: {first_line(error)}") from None
            time.sleep(_FIRST_PAUSE)


def _states(address: str, run_id: str) -> Iterator[Any]:
    """The run as KFP tells it, asked for again and again, ever more slowly."""
    client, pause = _client(address), _FIRST_PAUSE
    while True:
        yield client.get_run(run_id)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


class _StillRunningError(ProgramError):
    """The run takes too long."""


def _client(address: str) -> Any:
    from kfp.client import Client

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it works with KFP 2 only, each time
        return Client(host=address)


def _tell(found: Any, told: dict[str, str]) -> None:
    """Says which stages have begun or ended since the last time."""
    from pipelines.run_folder import STAGES

    for task in (found.run_details and found.run_details.task_details) or []:
        stage = (task.display_name or "").replace("-", "_")
        if stage in STAGES and task.state and told.get(stage) != task.state:
            told[stage] = task.state
            sys.stderr.write(f"{datetime.datetime.now():%H:%M:%S} {stage} {task.state.lower()}\n")


def _ended(found: Any) -> Ended:
    seconds = (found.finished_at - found.created_at).total_seconds() if found.finished_at and found.created_at else 0.0
    tasks = (found.run_details and found.run_details.task_details) or []
    failed = [task.display_name for task in tasks if task.state == "FAILED" and task.display_name]
    message = (found.error and found.error.message) or ""
    failure = "; ".join(part for part in (", ".join(failed), message) if part)
    return Ended(found.run_id, found.state, seconds, failure)
