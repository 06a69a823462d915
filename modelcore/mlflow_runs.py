"""Runs in MLflow: made, found again, written to, ended."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelcore import tracking
from modelcore.addresses import check_server
from modelcore.atomic import disk_is_full
from modelcore.errors import InputError, first_line, without_password
from modelcore.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_ATTEMPT = "modelcore.attempt"


class MLflowRun(tracking.Run):
    """A run in the MLflow that ``MLFLOW_TRACKING_URI`` names, written to directly.

    Args:
        run_id: Its id.
        owned: Whether to end it; KFP's launcher ends the runs that it made.
        at: The time to give to what is written, milliseconds of Unix time; None: that of each call.
    """

    def __init__(self, run_id: str, *, owned: bool, at: int | None = None) -> None:
        self.run_id: str = run_id
        self._owned, self._at = owned, at
        self._client = _client()
        self._monitor: SystemMetrics | None = None

    def sample_system_metrics(self) -> None:
        """Logs the machine's load in the background until the run ends."""
        self._monitor = SystemMetrics(self)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Logs what the run was asked to do; a parameter logged before keeps its value."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params if values else {}
        fresh = [Param(key, str(value)) for key, value in values.items() if key not in known]
        for first in range(0, len(fresh), 100):  # as many as MLflow takes at once
            self._client.log_batch(self.run_id, params=fresh[first : first + 100])

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Logs figures, each finite one, at ``step`` of their curve."""
        self.log_points([(values, step, self._now())])

    def log_points(self, points: Sequence[tuple[Mapping[str, float], int | None, int]]) -> None:
        """Logs figures, steps and times in milliseconds, as many as there are."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), at, step or 0)
            for values, step, at in points
            for key, value in values.items()
            if math.isfinite(value)
        ]
        for first in range(0, len(metrics), 1000):  # as many as MLflow takes at once
            self._client.log_batch(self.run_id, metrics=metrics[first : first + 1000])

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def log_text(self, text: str, file: str) -> None:
        """Stores ``text`` as the artifact ``file``."""
        self._client.log_text(self.run_id, text, file)

    def log_chart(self, file: str, chart: tracking.Chart, *columns: tracking.Columns) -> None:
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
            statuses = {None: "FINISHED", tracking.INTERRUPTED: "KILLED"}
            self._client.set_terminated(self.run_id, statuses.get(failure, "FAILED"), self._now())

    def _now(self) -> int:
        return int(time.time() * 1000) if self._at is None else self._at


def start(plan: tracking.Plan) -> MLflowRun:
    """The run that ``plan`` describes, begun.

    Raises:
        InputError: If MLflow cannot be used.
    """
    with _usable():
        run = MLflowRun(begin(plan), owned=plan.run_id is None)
        if plan.parameters is not None:
            run.log_params(plan.parameters)
        run.sample_system_metrics()
        return run


def cannot_be_used(error: BaseException) -> str:
    """What to say, in one line, of an error for which MLflow cannot be used."""
    uri = without_password(os.environ["MLFLOW_TRACKING_URI"])
    return wrong_address() or f"MLflow at {uri} (MLFLOW_TRACKING_URI) cannot be used: {first_line(error)}"


def wrong_address() -> str:
    """What to say, in one line, if MLflow's address is that of a server and cannot be right; else nothing."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if uri.startswith(("http:", "https:")):
        try:
            check_server("MLFLOW_TRACKING_URI", uri)
        except InputError as wrong:
            return str(wrong)
    return ""


def begin(plan: tracking.Plan, attempt: str = "", at: int | None = None) -> str:
    """The id of the run that ``plan`` describes, made or found."""
    if plan.run_id is not None:
        return str(_client().get_run(plan.run_id).info.run_id)
    if attempt and (found := _attempts(plan.experiment, attempt)):
        return found[0]
    mark = {_ATTEMPT: attempt} if attempt else {}
    if plan.parameters is not None:
        return _begin_pipeline(plan, mark, at)
    tags = {"mlflow.runName": plan.name, "stage": plan.name} | mark
    if plan.pipeline_run_id is not None:
        parent = find_or_create_pipeline_run(plan, at=at)
        tags |= {
            "mlflow.parentRunId": parent,
            "kfp.pipeline_run_id": plan.pipeline_run_id,
            "kfp.task_name": plan.name,
        }
    return _create_run(plan, tags, at)


def _begin_pipeline(plan: tracking.Plan, mark: dict[str, str], at: int | None) -> str:
    """The run of a whole pipeline, begun or taken up again; see :func:`modelcore.tracking.start_pipeline`."""
    client = _client()
    run_id = find_or_create_pipeline_run(plan, mark, at)
    left = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
    for stage in client.search_runs([_experiment_id(plan.experiment)], left):
        client.set_terminated(stage.info.run_id, "KILLED")
    before = client.get_run(run_id)
    found = before.data
    if found.params and found.params != {key: str(value) for key, value in (plan.parameters or {}).items()}:
        if before.info.status == "RUNNING":  # its driver died; one that has ended stays as it ended
            client.set_terminated(run_id, "KILLED")
        return _create_pipeline_run(plan, mark, at)
    if "failure" in found.tags:
        client.delete_tag(run_id, "failure")
    client.update_run(run_id, status="RUNNING")
    for key, value in mark.items():
        client.set_tag(run_id, key, value)
    return run_id


def find_or_create_pipeline_run(
    plan: tracking.Plan, mark: Mapping[str, str] | None = None, at: int | None = None
) -> str:
    """The id of the newest MLflow run that stands for the whole pipeline run of ``plan``, made at the first call."""
    found = _client().search_runs(
        [_experiment_id(plan.experiment)],
        f"tags.`kfp.pipeline_run_id` = '{plan.pipeline_run_id}' and tags.`stage` = 'pipeline'",
        max_results=1,
    )
    if found:
        return str(found[0].info.run_id)
    return _create_pipeline_run(plan, mark or {}, at)


def _create_pipeline_run(plan: tracking.Plan, mark: Mapping[str, str], at: int | None) -> str:
    name = plan.pipeline_name or str(plan.pipeline_run_id)
    tags = {"mlflow.runName": name, "stage": "pipeline", "kfp.pipeline_run_id": str(plan.pipeline_run_id)}
    return _create_run(plan, {**tags, **mark}, at)


def _create_run(plan: tracking.Plan, tags: dict[str, str], at: int | None) -> str:
    run = _client().create_run(_experiment_id(plan.experiment), start_time=at, tags=tags)
    return str(run.info.run_id)


def _attempts(experiment: str, attempt: str) -> list[str]:
    """The ids of the runs that requests for one and the same run have made."""
    found = _client().search_runs([_experiment_id(experiment)], f"tags.`{_ATTEMPT}` = '{attempt}'")
    return sorted(str(run.info.run_id) for run in found)


def delete_doubles(attempt: str, run_id: str) -> None:
    """Deletes what requests for one and the same run made beside the run ``run_id``."""
    client = _client()
    experiment = client.get_run(run_id).info.experiment_id
    for double in client.search_runs([experiment], f"tags.`{_ATTEMPT}` = '{attempt}'"):
        if double.info.run_id != run_id:
            client.delete_run(double.info.run_id)


def _client() -> MlflowClient:
    """A client of ``MLFLOW_TRACKING_URI``; MLflow would make a database in the working folder where that is not set."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


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
        raise InputError(cannot_be_used(error)) from error


def ensure_experiment(name: str, artifacts: Path) -> None:
    """Makes the experiment ``name``, its artifacts under ``artifacts``, in a database that is written to directly.

    Raises:
        InputError: If MLflow cannot be used.
    """
    with _usable():
        _experiment_id(name, artifacts.absolute().as_uri())


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


def _experiment_id(name: str, artifacts: str | None = None) -> str:
    from mlflow.exceptions import MlflowException

    _make_database(os.environ["MLFLOW_TRACKING_URI"])
    client = _client()
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
