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
from collections.abc import Mapping
from pathlib import Path

from modelcore import logs
from modelcore.atomic import atomic_directory
from modelcore.cluster.connection import Cluster, Object
from modelcore.cluster.pipeline_run import PipelineRun
from modelcore.cluster.train_job import TrainJob, TrainJobSpec, condition
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
    logs.configure()
    report_input_errors_in_one_line()
    interrupts = Interrupts(last_words=lambda: None)
    out = Path(out)
    kind.check(out)
    cluster = Cluster.connect()
    run = PipelineRun.of_this_pod(cluster)
    asked = json.dumps([run.id or str(out.absolute()), stage, dict(arguments), nodes, processes_per_node, runtime])
    name = f"aic-gpt-{stage.replace('_', '-')}-{hashlib.sha256(asked.encode()).hexdigest()[:10]}"
    folder, job = JobFolder(name), TrainJob(cluster, name)
    logger.info("stage=%s job=%s status=started", stage, name)
    try:
        if not _is_done(job, folder):
            shared = {key: folder.share(key, place) for key, place in inputs.items()}
            call = {**arguments, **shared, "out": str(folder.output), "summary": str(folder.summary)}
            labels = {"app.kubernetes.io/part-of": "aic-ai-poc-gpt", "app.kubernetes.io/component": stage}
            if not job.uid:
                job.create(
                    TrainJobSpec(
                        name,
                        runtime,
                        ("torchrun", "-m", "modelcore.cluster.job_process", stage, json.dumps(call)),
                        nodes,
                        processes_per_node,
                        _environment(run),
                        labels | ({"pipeline/runid": run.id} if run.id else {}),
                        run.owners,
                    )
                )
            Follower(job).follow()
        return _fetch(folder, out, Path(summary) if summary is not None else None)
    except KeyboardInterrupt:
        interrupts.ignore()
        _clean_up(job)
        raise SystemExit(interrupts.status) from None


def _is_done(job: TrainJob, folder: JobFolder) -> bool:
    """Whether an earlier attempt's job is done and what it made is here. One of no use any more is removed.

    Afterwards ``job.uid`` is that of a job that is under way, or empty.
    """
    found = job.find()
    if found is None:
        return False
    complete, failed = condition(found, "Complete"), condition(found, "Failed")
    if complete and folder.is_complete():
        logger.info("TrainJob %s, made by an earlier attempt, is complete", job.name)
        return True
    if complete or failed or found["metadata"].get("deletionTimestamp"):
        logger.info("TrainJob %s, made by an earlier attempt, %s; it is made anew", job.name, _state(found))
        job.delete()
        job.wait_until_gone()
        job.uid = ""
        return False
    logger.info("TrainJob %s, made by an earlier attempt, is under way; it is followed", job.name)
    return False


def _state(found: Object) -> str:
    if condition(found, "Failed"):
        return "has failed"
    return "is being deleted" if found["metadata"].get("deletionTimestamp") else "is complete, but its output is gone"


def _environment(run: PipelineRun) -> dict[str, str]:
    given = {name: os.environ[name] for name in _TRACKING if os.environ.get(name)}
    return given | ({"KFP_RUN_ID": run.id} if run.id else {})


def _clean_up(job: TrainJob) -> None:
    """Deletes the job of a stage that was asked to stop."""
    try:
        job.delete(_DELETE_SECONDS)
    except InputError as error:
        where = f"kubectl --namespace {job.cluster.namespace} delete trainjob {job.name}"
        sys.stderr.write(f"error: stopped, but {error}; to stop the job: {where}\n")
    else:
        sys.stderr.write(f"error: stopped; TrainJob {job.name} is deleted, its checkpoints stay\n")


def _fetch(folder: JobFolder, out: Path, summary: Path | None) -> StageSummary:
    """Copies what the job made to where the stage was asked to put it."""
    if not folder.is_complete():
        raise InputError(
            f"the job is complete, but {folder.output} or {folder.summary} is not there: do its pods mount the same "
            "claim as this stage?"
        )
    with atomic_directory(out) as fresh:
        shutil.copytree(folder.output, fresh, dirs_exist_ok=True)
    told = StageSummary.load(folder.summary)
    if summary is not None:
        told.save(summary)
    folder.drop_inputs()
    return told
