"""A stage that is run by a TrainJob: torchrun on its nodes, one process a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from modelcore.cluster.connection import Object
from modelcore.cluster.job_stage import run_job
from modelcore.cluster.pipeline_run import PipelineRun
from modelcore.cluster.train_job import TrainJob, TrainJobSpec
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Scalar, StageSummary


def run_on_trainer(
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

    def create(job: TrainJob, call: Object, run: PipelineRun, labels: dict[str, str]) -> None:
        command = ("torchrun", "-m", "modelcore.cluster.job_process", stage, json.dumps(call))
        environment = run.tracking_environment()
        job.create(TrainJobSpec(job.name, runtime, command, nodes, processes_per_node, environment, labels, run.owners))

    return run_job(
        TrainJob,
        stage,
        arguments,
        (nodes, processes_per_node, runtime),
        inputs=inputs,
        outputs={"out": out},
        create=create,
        summary=summary,
    )
