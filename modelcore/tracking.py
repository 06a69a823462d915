"""Tracking in MLflow: one run a pipeline, one nested run a stage.

Where a stage finds itself decides what happens:

* ``MLFLOW_RUN_ID`` is set (KFP 2.17's own MLflow integration made the stage's run): that run is used.
* ``KFP_RUN_ID`` is set (the local runner, or a cluster without the integration): the pipeline's run is found by its
  tag ``kfp.pipeline_run_id``, or made, and the stage becomes its child.
* Only ``MLFLOW_TRACKING_URI`` is set (the command line): the stage is a run of its own.
* None is set: nothing is tracked, and mlflow is not even imported.

Under the local runner a stage does not import mlflow either: it tells the driver, see :mod:`modelcore.relay`. A server
(``http://…``) may be away or slow: what is tracked goes to a journal on disk first, see :mod:`modelcore.delivery`. A
database is written to directly, see :mod:`modelcore.mlflow_runs`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from modelcore import launch

DEFAULT_EXPERIMENT = "aic-ai-poc-gpt"
INTERRUPTED = "interrupted"  # the failure of a run that somebody stopped

Chart: TypeAlias = Literal[
    "loss_curve", "learning_rate", "token_lengths", "bits_per_byte", "reliability", "token_drift"
]
Columns: TypeAlias = Mapping[str, Sequence[Any]]


class Run:
    """A tracked run; this base class is the one that tracks nothing."""

    run_id: str | None = None  # None also as long as the server has not given it one

    def known_id(self, patience: float) -> str | None:
        """The run's id, waited for at most ``patience`` seconds; None if it is not known then."""
        return self.run_id

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs what the run was asked to do; a parameter logged before keeps its value."""

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs figures, each finite one, at ``step`` of their curve."""

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""

    def log_text(self, text: str, file: str) -> None:
        """Stores ``text`` as the artifact ``file``."""

    def log_chart(self, file: str, chart: Chart, *columns: Columns) -> None:
        """Draws a picture and stores it as an artifact.

        Args:
            file: The artifact; its ending names the format.
            chart: A function of :mod:`modelcore.charts`.
            *columns: What it draws.
        """

    def log_path(self, path: Path, folder: str | None = None) -> None:
        """Stores a file, or a folder's content, under the artifact folder ``folder``."""

    def log_dataset(self, *, name: str, source: str, digest: str, rows: int, context: str) -> None:
        """Records that the run read a data set.

        Args:
            name: The data set's name.
            source: Path or URI it came from.
            digest: SHA-256 of its content, in hexadecimal; MLflow keeps the first 36 characters.
            rows: Number of documents.
            context: What it was used for: ``training``, ``evaluation`` …
        """

    def end(self, failure: str | None = None) -> None:
        """Ends the run: finished, failed with a reason, or killed where the reason is :data:`INTERRUPTED`."""

    def start_stage(self, name: str) -> Run:
        """The run of a stage of the pipeline that this run is of."""
        return start_run_of_stage(name)

    def deliver(self, complete: bool) -> None:
        """Gives what a pipeline and its stages tracked a while to reach the server; nothing is tracked after that.

        Args:
            complete: Whether all went well; then it is a longer while.
        """


@dataclass(frozen=True)
class Plan:
    """What a run is to be, wherever and whenever it is made.

    Attributes:
        name: The stage's name, or ``pipeline``.
        experiment: The experiment it belongs to.
        run_id: The run that KFP made for it, or None.
        pipeline_run_id: The pipeline run that it is, or is a stage of; None for a stage by itself.
        pipeline_name: That run's name.
        parameters: What the whole pipeline was asked to do; None for a stage.
    """

    name: str
    experiment: str
    run_id: str | None = None
    pipeline_run_id: str | None = None
    pipeline_name: str | None = None
    parameters: dict[str, str] | None = None

    @classmethod
    def of_stage(cls, name: str) -> Plan:
        """A stage's, as this process's environment tells."""
        environment = os.environ.get
        return cls(
            name,
            environment("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT,
            run_id=environment("MLFLOW_RUN_ID"),
            pipeline_run_id=environment("KFP_RUN_ID"),
            pipeline_name=environment("KFP_RUN_NAME"),
        )

    def arguments(self) -> dict[str, Any]:
        """Its attributes, as JSON."""
        return dataclasses.asdict(self)


def start_stage(name: str, output: Path | None = None) -> Run:
    """The run that a stage's figures go to; see the head of this file for how it is chosen.

    Args:
        name: The stage's name.
        output: Where it writes: the journal, where there is one, lies beside, as ``.<name of output>.tracking``. None:
            in a temporary folder.

    Raises:
        InputError: If MLflow cannot be used.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") or launch.rank() > 0:
        return Run()
    if address := os.environ.get("MODELCORE_RELAY"):
        from modelcore.relay import RelayedRun

        return RelayedRun(address, name)
    return start_run_of_stage(name, output)


def start_run_of_stage(name: str, output: Path | None = None) -> Run:
    """Like :func:`start_stage`, tracked by this process.

    Raises:
        InputError: If MLflow cannot be used.
    """
    plan = Plan.of_stage(name)
    if not _is_server():
        from modelcore import mlflow_runs

        return mlflow_runs.start(plan)
    from modelcore import delivery

    if output is None:
        return delivery.start(plan, Path(tempfile.mkdtemp(prefix="modelcore-tracking-")), own=True)
    output = Path(os.path.realpath(output))
    return delivery.start(plan, output.with_name(f".{output.name}.tracking"), own=True, output=output)


def start_pipeline(pipeline_run_id: str, parameters: Mapping[str, Any], folder: Path | None = None) -> Run:
    """The run of the whole pipeline, for the one process that drives it, begun or taken up again.

    What an earlier driver left running when it died is marked killed. A pipeline that goes on with other
    parameters is tracked by a new run, for MLflow's parameters are never changed.

    Args:
        pipeline_run_id: The pipeline run's id.
        parameters: What the pipeline was asked to do, logged once.
        folder: The run's folder, for the journal; None: a temporary one.

    Raises:
        InputError: If MLflow cannot be used.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return Run()
    given = {key: str(value) for key, value in parameters.items()}
    name = os.environ.get("KFP_RUN_NAME", pipeline_run_id)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    plan = Plan("pipeline", experiment, None, pipeline_run_id, name, given)
    if not _is_server():
        from modelcore import mlflow_runs

        return mlflow_runs.start(plan)
    from modelcore import delivery

    place = folder / delivery.FOLDER if folder is not None else Path(tempfile.mkdtemp(prefix="modelcore-tracking-"))
    run = delivery.start(plan, place, own=False)
    run.log_params(given)
    return run


def ensure_experiment(artifacts: Path) -> None:
    """Makes the experiment that runs go to, its artifacts under ``artifacts``, where MLflow is a database.

    Raises:
        InputError: If MLflow cannot be used.
    """
    if not _is_server():
        from modelcore import mlflow_runs

        mlflow_runs.ensure_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT, artifacts)


def deliver_earlier(runs: Path) -> None:
    """Delivers what earlier runs, below the folder ``runs``, left for the server that is tracked to now."""
    if _is_server():
        from modelcore import delivery

        delivery.deliver_earlier(runs)


def call(run: Run, method: str, arguments: Mapping[str, Any]) -> None:
    """Calls a method of a run with arguments that were JSON on their way."""
    arguments = dict(arguments)
    columns = arguments.pop("columns", [])
    if method == "log_path":
        arguments["path"] = Path(arguments["path"])
    if method == "log_chart":
        run.log_chart(arguments["file"], arguments["chart"], *columns)
    else:
        getattr(run, method)(**arguments)


def fault_of(error: BaseException) -> str | None:
    """What to say, in one line, of an error that MLflow or its database raised; None for any other error."""
    names = (("mlflow.exceptions", "MlflowException"), ("sqlalchemy.exc", "SQLAlchemyError"))
    kinds = tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
    if not isinstance(error, kinds):
        return None
    from modelcore import mlflow_runs

    return mlflow_runs.cannot_be_used(error)


def is_buffered_by_driver() -> bool:
    """Whether this is a stage of a run on this machine that tracks to a server: it goes on while that is away."""
    from modelcore import relay

    # In a container only the driver knows whether it is a server; a database is never away.
    return relay.ADDRESS in os.environ and (_is_server() or os.environ["MLFLOW_TRACKING_URI"] == relay.URI)


def _is_server() -> bool:
    return os.environ["MLFLOW_TRACKING_URI"].startswith(("http://", "https://"))
