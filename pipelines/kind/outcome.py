"""What a run on the cluster came to: the stages' summaries from KFP's object store, as the table of a local run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from modelcore import storage
from modelcore.errors import InputError
from modelcore.stages.stage import StageSummary
from pipelines.run_folder import STAGES

# Where KFP 2 keeps a run's outputs: pipeline root, pipeline, run, task, one folder an execution, output.
PIPELINE_ROOT = "s3://mlpipeline/v2/artifacts/aic-ai-poc-gpt"


def open_store(address: str, key: tuple[str, str]) -> None:
    """Makes the object store at ``address`` the one that s3:// means in this process.

    Args:
        address: ``http://host:port``.
        key: Access key and secret key.
    """
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ENDPOINT_URL_S3": address,  # a user's own would come first
        "AWS_ACCESS_KEY_ID": key[0],
        "AWS_SECRET_ACCESS_KEY": key[1],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.pop("AWS_SESSION_TOKEN", None)


def summaries(run_id: str) -> list[StageSummary]:
    """The summaries of all stages of a run, in their order.

    Raises:
        InputError: If one is missing, or the store does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        return [StageSummary.load(_fetch(run_id, stage, "summary", Path(folder) / stage)) for stage in STAGES]


def fetch_page(run_id: str, to: Path) -> None:
    """Writes the run's report, one page, to a file.

    Raises:
        InputError: If there is none, or the store does not answer.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        os.replace(_fetch(run_id, "write_report", "page", Path(folder) / "page"), to)


def _fetch(run_id: str, stage: str, output: str, into: Path) -> Path:
    """Downloads an output of a stage; of one that was executed again, the execution that wrote it."""
    task = f"{PIPELINE_ROOT}/{run_id}/{stage.replace('_', '-')}"
    for execution in storage.list_children(task):
        if storage.exists(f"{task}/{execution}/{output}"):
            return storage.localize(f"{task}/{execution}/{output}", into)
    raise InputError(f"the run's object store has no {output} of {stage} under {task}")
