"""A stage that is run by a TrainJob: what it reads is put where the job sees it, and what the job made is fetched.

What becomes of the job when this process does not live to its end:

* Asked to stop (SIGTERM: the pipeline's run was cancelled, or the node is drained), it deletes the job. Nothing is lost
  but the steps since the newest checkpoint, and nobody pays for GPUs that nobody waits for.
* Killed without a word, it leaves the job running. The stage's next attempt has the same name for it, for that is made
  of the pipeline run's id and of what is asked for, and goes on following it.
* The job belongs to what this pod belongs to, the workflow of the pipeline's run, and is removed with that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modelcore import logs
from modelcore.atomic import atomic_directory
from modelcore.cluster.cluster_job import ClusterJob
from modelcore.cluster.connection import Cluster, Object
from modelcore.cluster.pipeline_run import PipelineRun
from modelcore.cluster.train_job import TrainJob, TrainJobSpec
from modelcore.cluster.train_job_progress import Follower
from modelcore.cluster.workspace import JobFolder
from modelcore.errors import InputError
from modelcore.interrupts import Interrupts
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Scalar, StageSummary, report_input_errors_in_one_line

logger = logging.getLogger(__name__)

# Where tracking goes. Who signs in there, and the keys of object storage, are secrets that the runtime names.
_TRACKING = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_WORKSPACE",
    "KFP_RUN_NAME",
)
_DELETE_SECONDS = 20.0  # of the 30 that Kubernetes gives a pod to end


def run_as_job(
    stage: str,
    arguments: Mapping[str, Scalar],
    *,
    inputs: Mapping[str, Path | str],
    out: Path | str,
    kind: Output,
    nodes: int,
    processes_per_node: int,
    runtime: str,
    summary: Path | str | None = None,
) -> StageSummary:
    """Runs a stage on the nodes of a TrainJob, and returns when it is done.

    Args:
        stage: The stage.
        arguments: What it is called with, but for its inputs, output and summary.
        inputs: Its inputs, by the names of its arguments: paths that this process can read, or S3 addresses.
        out: Where its output goes, as if it had run here.
        kind: What that is.
        nodes: Pods of the job.
        processes_per_node: Processes in each.
        runtime: The (Cluster)TrainingRuntime that they run on.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary that the stage wrote in the job.

    Raises:
        InputError: If the job fails, is deleted by somebody else, or cannot be made.
        SystemExit: If this process was asked to stop.
    """
    out = Path(out)
    kind.check(out)

    def create(job: ClusterJob, call: Object, run: PipelineRun, labels: dict[str, str]) -> None:
        if isinstance(job, TrainJob):
            command = ("torchrun", "-m", "modelcore.cluster.job_process", stage, json.dumps(call))
            environment = tracking_environment(run)
            job.create(
                TrainJobSpec(job.name, runtime, command, nodes, processes_per_node, environment, labels, run.owners)
            )

    asked = (nodes, processes_per_node, runtime)
    return run_job(
        TrainJob, stage, arguments, asked, inputs=inputs, outputs={"out": out}, create=create, summary=summary
    )


def run_job(
    job_type: type[ClusterJob],
    stage: str,
    arguments: Mapping[str, Scalar],
    asked: Sequence[Scalar],
    *,
    inputs: Mapping[str, Path | str],
    outputs: Mapping[str, Path],
    create: Callable[[ClusterJob, Object, PipelineRun, dict[str, str]], None],
    summary: Path | str | None,
) -> StageSummary:
    """Runs a stage in a job of some kind, made now or by an earlier attempt, and returns when it is done.

    Args:
        job_type: The kind of job.
        stage: The stage.
        arguments: What it is called with, but for its inputs, outputs and summary.
        asked: What else the job is made of; of other such a job is another.
        inputs: As of :func:`run_as_job`.
        outputs: Where its outputs go, by the names of its arguments. Of one the job's output is the folder itself, of
            several each has a folder in it.
        create: Makes the job, given what the stage is to be called with, the pipeline's run and the job's labels.
        summary: JSON file for the stage's summary, or None.

    Raises:
        InputError: If the job fails, is deleted by somebody else, or cannot be made.
        SystemExit: If this process was asked to stop.
    """
    logs.configure()
    report_input_errors_in_one_line()
    interrupts = Interrupts(last_words=lambda: None)
    cluster = Cluster.connect()
    run = PipelineRun.of_this_pod(cluster)
    identity = run.id or str(next(iter(outputs.values())).absolute())
    digest = hashlib.sha256(json.dumps([identity, stage, dict(arguments), *asked]).encode()).hexdigest()
    name = f"aic-gpt-{stage.replace('_', '-')}-{digest[:10]}"
    folder, job = JobFolder(name), job_type(cluster, name)
    made = {key: folder.output if len(outputs) == 1 else folder.output / key for key in outputs}
    logger.info("stage=%s job=%s status=started", stage, name)
    complete = False
    try:
        if not _is_done(job, folder):
            shared = {key: folder.share(key, place) for key, place in inputs.items()}
            call = {**arguments, **shared, **{key: str(path) for key, path in made.items()}}
            labels = {"app.kubernetes.io/part-of": "aic-ai-poc-gpt", "app.kubernetes.io/component": stage}
            if not job.uid:
                call["summary"] = str(folder.summary)
                create(job, call, run, labels | ({"pipeline/runid": run.id} if run.id else {}))
            Follower(job).follow()
        complete = True
        return _fetch(folder, made, outputs, Path(summary) if summary is not None else None)
    except KeyboardInterrupt:
        interrupts.ignore()
        if not complete:  # else the next attempt finds it, and only fetches
            _clean_up(job)
        raise SystemExit(interrupts.status) from None


def _is_done(job: ClusterJob, folder: JobFolder) -> bool:
    """Whether an earlier attempt's job is done and what it made is here. One of no use any more is removed.

    Afterwards ``job.uid`` is that of a job that is under way, or empty.
    """
    found = job.find()
    if found is None:
        return False
    complete, failed = job.is_complete(found), job.failure(found) is not None
    if complete and folder.is_complete():
        logger.info("%s %s, made by an earlier attempt, is complete", job.kind, job.name)
        return True
    if complete or failed or found["metadata"].get("deletionTimestamp"):
        logger.info("%s %s, made by an earlier attempt, %s; it is made anew", job.kind, job.name, _state(job, found))
        job.delete()
        job.wait_until_gone()
        job.uid = ""
        return False
    logger.info("%s %s, made by an earlier attempt, is under way; it is followed", job.kind, job.name)
    return False


def _state(job: ClusterJob, found: Object) -> str:
    if job.failure(found) is not None:
        return "has failed"
    return "is being deleted" if found["metadata"].get("deletionTimestamp") else "is complete, but its output is gone"


def tracking_environment(run: PipelineRun) -> dict[str, str]:
    """The variables that lead a job's processes to the run in MLflow."""
    given = {name: os.environ[name] for name in _TRACKING if os.environ.get(name)}
    return given | ({"KFP_RUN_ID": run.id} if run.id else {})


def _clean_up(job: ClusterJob) -> None:
    """Deletes the job of a stage that was asked to stop."""
    try:
        job.delete(_DELETE_SECONDS)
    except InputError as error:
        where = f"kubectl --namespace {job.cluster.namespace} delete {job.kind.lower()} {job.name}"
        sys.stderr.write(f"error: stopped, but {error}; to stop the job: {where}\n")
    else:
        sys.stderr.write(f"error: stopped; {job.kind} {job.name} is deleted{f', {job.keeps}' if job.keeps else ''}\n")


def _fetch(
    folder: JobFolder, made: Mapping[str, Path], outputs: Mapping[str, Path], summary: Path | None
) -> StageSummary:
    """Copies what the job made to where the stage was asked to put it."""
    if not folder.is_complete():
        raise InputError(
            f"the job is complete, but {folder.output} or {folder.summary} is not there: do its pods mount the same "
            "claim as this stage?"
        )
    for name, out in outputs.items():
        with atomic_directory(out) as fresh:
            shutil.copytree(made[name], fresh, dirs_exist_ok=True)
    told = StageSummary.load(folder.summary)
    if summary is not None:
        told.save(summary)
    folder.drop_inputs()
    return told
