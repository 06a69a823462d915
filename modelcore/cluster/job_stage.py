"""A stage that is run by a job: what it reads is put where the job sees it, and what the job made is fetched.

What becomes of the job when this process does not live to its end:

* Asked to stop (SIGTERM: the pipeline's run was cancelled, or the node is drained), it deletes the job. Nothing is lost
  but the steps since the newest checkpoint, and nobody pays for GPUs that nobody waits for.
* Killed without a word, it leaves the job running. The stage's next attempt has the same name for it, and goes on
  following it.
* The job belongs to what this pod belongs to, the workflow of the pipeline's run, and is removed with that.

The copies of inputs go when no job reads them any more, however it ended.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from modelcore import logs
from modelcore.atomic import atomic_directory
from modelcore.cluster.cluster_job import ClusterJob, JobEndedError
from modelcore.cluster.connection import Cluster, Object
from modelcore.cluster.follower import Follower
from modelcore.cluster.pipeline_run import PipelineRun
from modelcore.cluster.workspace import JobFolder, identify
from modelcore.errors import InputError, first_line
from modelcore.interrupts import Interrupts
from modelcore.stages.stage import Scalar, StageSummary, report_input_errors_in_one_line

logger = logging.getLogger(__name__)

Job = TypeVar("Job", bound=ClusterJob)

_DELETE_SECONDS = 20.0  # of the 30 that Kubernetes gives a pod to end


def run_job(
    job_type: type[Job],
    stage: str,
    arguments: Mapping[str, Scalar],
    asked: Sequence[Scalar],
    *,
    inputs: Mapping[str, Path | str],
    outputs: Mapping[str, Path],
    create: Callable[[Job, Object, PipelineRun, dict[str, str]], None],
    summary: Path | str | None,
) -> StageSummary:
    """Runs a stage in a job of some kind, made now or by an earlier attempt, and returns when it is done.

    Args:
        job_type: The kind of job.
        stage: The stage.
        arguments: What it is called with, but for its inputs, outputs and summary.
        asked: What else the job is made of; of other such a job is another.
        inputs: Its inputs, by the names of its arguments: paths that this process can read, or S3 addresses.
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
    task = [run.id, run.task] if run.id else [str(next(iter(outputs.values())).absolute())]
    name = _name(stage, [task, dict(arguments), list(asked), {key: identify(place) for key, place in inputs.items()}])
    folder, job = JobFolder(name), job_type(cluster, name)
    made = {key: folder.output if len(outputs) == 1 else folder.output / key for key in outputs}
    logger.info("stage=%s job=%s status=started", stage, name)
    complete = False
    try:
        if not _is_done(job, folder):
            if not job.uid:
                shared = {key: folder.share(key, place) for key, place in inputs.items()}
                call = {**arguments, **shared, **{key: str(path) for key, path in made.items()}}
                create(job, call | {"summary": str(folder.summary)}, run, run.labels() | _labels(stage))
            Follower(job).follow()
        complete = True
        return _fetch(folder, made, outputs, Path(summary) if summary is not None else None)
    except KeyboardInterrupt:
        interrupts.ignore()
        if not complete and _clean_up(job):  # else the next attempt finds it, and only fetches
            folder.drop_inputs()
        raise SystemExit(interrupts.status) from None
    except InputError as error:
        if complete:
            raise
        if job.uid and not isinstance(error, JobEndedError):
            raise InputError(
                f"{error}; {job.kind} {name} goes on meanwhile: run the stage again to follow it, or {_deletion(job)}"
            ) from None
        folder.drop_inputs()
        raise


def _name(stage: str, identity: Sequence[Any]) -> str:
    """The job's name: every attempt of one task with the same inputs has the same, and nothing else has it."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"aic-gpt-{stage.replace('_', '-')}-{digest[:10]}"


def _labels(stage: str) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "aic-ai-poc-gpt", "app.kubernetes.io/component": stage}


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


def _clean_up(job: ClusterJob) -> bool:
    """Deletes the job of a stage that was asked to stop; whether there is none any more."""
    try:
        was_there = job.delete(_DELETE_SECONDS)
    except InputError as error:
        sys.stderr.write(f"error: stopped, but {error}; to stop the job: {_deletion(job)}\n")
        return False
    what = f"is deleted{f', {job.keeps}' if job.keeps else ''}" if was_there else "does not run"
    sys.stderr.write(f"error: stopped; {job.kind} {job.name} {what}\n")
    return True


def _deletion(job: ClusterJob) -> str:
    return f"kubectl --namespace {job.cluster.namespace} delete {job.kind.lower()} {job.name}"


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
        try:
            with atomic_directory(out) as fresh:
                shutil.copytree(made[name], fresh, dirs_exist_ok=True)
        except OSError as error:
            raise InputError(
                f"what the job made, {made[name]}, cannot be copied to {out}: {first_line(error)}"
            ) from None
    told = StageSummary.load(folder.summary)
    if summary is not None:
        told.save(summary)
    folder.drop_inputs()
    return told
