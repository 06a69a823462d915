"""Tracking in MLflow: one run a pipeline, one nested run a stage.

With :mod:`modelcore.registry` the only file that imports mlflow.

Where a stage finds itself decides what happens:

* ``MLFLOW_RUN_ID`` is set (KFP 2.17's own MLflow integration made the stage's run): that run is used.
* ``KFP_RUN_ID`` is set (the local runner, or a cluster without the integration): the pipeline's run is found by its
  tag ``kfp.pipeline_run_id``, or made, and the stage becomes its child.
* Only ``MLFLOW_TRACKING_URI`` is set (the command line): the stage is a run of its own.
* None is set: nothing is tracked, and mlflow is not even imported.

Under the local runner a stage does not import mlflow either: it tells the driver, see :mod:`modelcore.relay`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from modelcore import launch
from modelcore.atomic import disk_is_full
from modelcore.errors import InputError, first_line

logger = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "aic-ai-poc-gpt"
INTERRUPTED = "interrupted"  # the failure of a run that somebody stopped

Chart: TypeAlias = Literal["loss_curve", "learning_rate", "token_lengths", "bits_per_byte", "reliability"]
Columns: TypeAlias = Mapping[str, Sequence[Any]]


class Run:
    """A tracked run; this base class is the one that tracks nothing."""

    run_id: str | None = None

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


class MLflowRun(Run):
    """A run on the MLflow server that ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self, run_id: str, *, owned: bool) -> None:
        from mlflow.tracking import MlflowClient

        self.run_id: str = run_id
        self._owned = owned
        self._client = MlflowClient()
        self._params = set(self._client.get_run(run_id).data.params)
        self._monitor = _start_system_metrics(run_id)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs what the run was asked to do; a parameter logged before keeps its value."""
        from mlflow.entities import Param

        fresh = {key: value for key, value in values.items() if key not in self._params}
        self._params |= fresh.keys()
        if fresh:
            self._client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in fresh.items()])

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs figures, each finite one, at ``step`` of their curve."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        metrics = [Metric(key, float(value), now, step or 0) for key, value in values.items() if math.isfinite(value)]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        for key, value in values.items():
            self._client.set_tag(self.run_id, key, value)

    def log_text(self, text: str, file: str) -> None:
        """Stores ``text`` as the artifact ``file``."""
        self._client.log_text(self.run_id, text, file)

    def log_chart(self, file: str, chart: Chart, *columns: Columns) -> None:
        """Draws a picture and stores it as the artifact ``file``; arguments as in :meth:`Run.log_chart`."""
        from modelcore import charts

        figure = getattr(charts, chart)(*columns)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(file).name
            figure.savefig(path, bbox_inches="tight")
            self.log_path(path, str(Path(file).parent) if Path(file).parent != Path() else None)

    def log_path(self, path: Path, folder: str | None = None) -> None:
        """Stores a file, or a folder's content, under the artifact folder ``folder``."""
        if Path(path).is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_dataset(self, *, name: str, source: str, digest: str, rows: int, context: str) -> None:
        """Records that the run read a data set; arguments as in :meth:`Run.log_dataset`."""
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:36],
            source_type="local" if "://" not in source else source.split("://")[0],
            source=json.dumps({"uri": source}),
            profile=json.dumps({"documents": rows, "sha256": digest}),
        )
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])

    def end(self, failure: str | None = None) -> None:
        """Ends the run, unless another process (KFP's launcher) made it and will end it itself."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        if failure is not None:
            self._client.set_tag(self.run_id, "failure", failure[:5000])
        if self._owned:
            statuses = {None: "FINISHED", INTERRUPTED: "KILLED"}
            self._client.set_terminated(self.run_id, statuses.get(failure, "FAILED"))


def start_stage(name: str) -> Run:
    """The run that a stage's figures go to; see the head of this file for how it is chosen.

    Raises:
        InputError: If MLflow cannot be used.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") or launch.rank() > 0:
        return Run()
    if address := os.environ.get("MODELCORE_RELAY"):
        from modelcore.relay import RelayedRun

        return RelayedRun(address, name)
    return start_run_of_stage(name)


def start_run_of_stage(name: str) -> MLflowRun:
    """Like :func:`start_stage`, tracked by this process.

    Raises:
        InputError: If MLflow cannot be used.
    """
    with _usable():
        if run_id := os.environ.get("MLFLOW_RUN_ID"):
            return MLflowRun(run_id, owned=False)
        tags = {"mlflow.runName": name, "stage": name}
        if pipeline_run_id := os.environ.get("KFP_RUN_ID"):
            parent = find_or_create_pipeline_run(pipeline_run_id)
            tags |= {"mlflow.parentRunId": parent, "kfp.pipeline_run_id": pipeline_run_id, "kfp.task_name": name}
        return MLflowRun(_create_run(tags), owned=True)


def find_or_create_pipeline_run(pipeline_run_id: str) -> str:
    """The id of the MLflow run that stands for a whole pipeline run, made at the first call."""
    from mlflow.tracking import MlflowClient

    found = MlflowClient().search_runs(
        [_experiment_id()],
        f"tags.`kfp.pipeline_run_id` = '{pipeline_run_id}' and tags.`stage` = 'pipeline'",
        max_results=1,
    )
    if found:
        return str(found[0].info.run_id)
    return _create_pipeline_run(pipeline_run_id)


def _create_pipeline_run(pipeline_run_id: str) -> str:
    name = os.environ.get("KFP_RUN_NAME", pipeline_run_id)
    return _create_run({"mlflow.runName": name, "stage": "pipeline", "kfp.pipeline_run_id": pipeline_run_id})


def start_pipeline(pipeline_run_id: str, parameters: Mapping[str, Any]) -> Run:
    """The run of the whole pipeline, for the one process that drives it, begun or taken up again.

    What an earlier driver left running when it died is marked killed. A pipeline that goes on with other
    parameters is tracked by a new run, for MLflow's parameters are never changed.

    Args:
        pipeline_run_id: The pipeline run's id.
        parameters: What the pipeline was asked to do, logged once.

    Raises:
        InputError: If MLflow cannot be used.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return Run()
    with _usable():
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        run_id = find_or_create_pipeline_run(pipeline_run_id)
        left = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
        for stage in client.search_runs([_experiment_id()], left):
            client.set_terminated(stage.info.run_id, "KILLED")
        before = client.get_run(run_id)
        found = before.data
        if found.params and found.params != {key: str(value) for key, value in parameters.items()}:
            if before.info.status == "RUNNING":  # its driver died; one that has ended stays as it ended
                client.set_terminated(run_id, "KILLED")
            run_id = _create_pipeline_run(pipeline_run_id)
        elif "failure" in found.tags:
            client.delete_tag(run_id, "failure")
        client.update_run(run_id, status="RUNNING")
        run = MLflowRun(run_id, owned=True)
        run.log_params(parameters)
        return run


def fault_of(error: BaseException) -> str | None:
    """What to say, in one line, of an error that MLflow or its database raised; None for any other error."""
    names = (("mlflow.exceptions", "MlflowException"), ("sqlalchemy.exc", "SQLAlchemyError"))
    kinds = tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
    return _cannot_be_used(error) if isinstance(error, kinds) else None


def _cannot_be_used(error: BaseException) -> str:
    return f"MLflow at {os.environ['MLFLOW_TRACKING_URI']} (MLFLOW_TRACKING_URI) cannot be used: {first_line(error)}"


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    """Turns what MLflow raises where its server or database cannot be used into one line."""
    from mlflow.exceptions import MlflowException

    errors: list[type[Exception]] = [MlflowException, OSError]
    with contextlib.suppress(ImportError):  # mlflow-skinny, which speaks to servers only, comes without it
        from sqlalchemy.exc import SQLAlchemyError

        errors.append(SQLAlchemyError)
    try:
        yield
    except tuple(errors) as error:
        if disk_is_full(error):
            raise
        raise InputError(_cannot_be_used(error)) from error


def _create_run(tags: dict[str, str]) -> str:
    from mlflow.tracking import MlflowClient

    return str(MlflowClient().create_run(_experiment_id(), tags=tags).info.run_id)


def ensure_experiment(artifacts: Path) -> None:
    """Makes the experiment that runs go to, its artifacts under ``artifacts`` where MLflow keeps them in files.

    Raises:
        InputError: If MLflow cannot be used.
    """
    with _usable():
        _experiment_id(None if os.environ["MLFLOW_TRACKING_URI"].startswith("http") else artifacts.absolute().as_uri())


def _make_database(uri: str) -> None:
    """Makes MLflow's SQLite database, if ``uri`` names one that does not exist, as a whole.

    MLflow makes its tables one after the other, in seconds, and cannot use what an interrupt or a full disk leaves.
    """
    if not uri.startswith("sqlite:///") or "?" in uri or (path := Path(uri.removeprefix("sqlite:///"))).exists():
        return
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        fresh = Path(folder) / path.name
        MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass  # another process was faster
        except OSError:  # a file system without hard links
            os.replace(fresh, path)


def _experiment_id(artifacts: str | None = None) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    _make_database(os.environ["MLFLOW_TRACKING_URI"])
    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:  # another process made it between the two calls
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _start_system_metrics(run_id: str) -> Any:
    """Samples CPU, memory and GPU use in the background into the run's ``system/…`` metrics."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "2"))
    monitor = SystemMetricsMonitor(run_id, sampling_interval=interval, samples_before_logging=1)
    monitor.start()
    return monitor
