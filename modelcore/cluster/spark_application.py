"""A SparkApplication of the Spark operator: a stage that prepares text, run by a driver and executors in the cluster.

The API is that of the operator 2.5, https://www.kubeflow.org/docs/components/spark-operator/. Driver and executors run
one image and mount one claim, so paths mean the same to all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelcore import storage
from modelcore.cluster.cluster_job import ClusterJob, literal
from modelcore.cluster.connection import Object
from modelcore.cluster.job_stage import run_job
from modelcore.cluster.pipeline_run import PipelineRun
from modelcore.cluster.workspace import MOUNTED
from modelcore.errors import InputError
from modelcore.stages.stage import Scalar, StageSummary

logger = logging.getLogger(__name__)

SPARK_VERSION = "4.3.0"
PROGRAM = "local:///opt/venv/job_process.py"  # the image's link to modelcore.cluster.job_process
_CLAIM, _ACCOUNT, _STORAGE, _TRACKING = (
    "aic-gpt-workspace",
    "aic-gpt-spark",
    "aic-gpt-storage",
    "kfp-mlflow-credentials",
)
_CORES = 2  # of an executor, and so tasks at a time; one takes some 200 MiB beside Java


class SparkApplication(ClusterJob):
    """The SparkApplication of a name."""

    kind, resource, plural = "SparkApplication", ("sparkoperator.k8s.io", "v1beta2"), "sparkapplications"
    operator, container = "the Spark operator 2.5", "spark-kubernetes-driver"

    @property
    def pods(self) -> str:
        """The label selector of its pods."""
        return f"sparkoperator.k8s.io/app-name={self.name}"

    def speaks_for_all(self, pod: Object) -> bool:
        """Whether it is the driver's pod."""
        return bool(pod["metadata"].get("labels", {}).get("spark-role") == "driver")

    def is_complete(self, found: Object) -> bool:
        """Whether the application, as it was found, has done its work."""
        return _state(found) == "COMPLETED"

    def failure(self, found: Object) -> str | None:
        """What it says of its failure, which may be nothing; None if it has not failed.

        ``FAILING`` and ``SUBMISSION_FAILED`` come before ``FAILED``, which the operator makes of them where its restart
        policy, as here, is Never.
        """
        if _state(found) != "FAILED":
            return None
        return str(found["status"]["applicationState"].get("errorMessage", "")).replace("\n", " ").strip()


def run_on_spark(
    stage: str,
    arguments: Mapping[str, Scalar],
    *,
    inputs: Mapping[str, Path | str],
    outputs: Mapping[str, Path],
    executors: int,
    image: str,
    summary: Path | str | None = None,
) -> StageSummary:
    """Runs a stage with ``engine="spark"`` in a SparkApplication, and returns when it is done.

    Cancelled, killed and started again, it does what :mod:`modelcore.cluster.job_stage` says.

    Args:
        stage: ``validate_data`` or ``tokenize_corpus``.
        arguments: What it is called with, but for its inputs, outputs, engine and summary.
        inputs: Its inputs, by the names of its arguments: paths that this process can read, or S3 addresses.
        outputs: Where its outputs go, by the names of its arguments, as if it had run here.
        executors: How many executors there are.
        image: What driver and executors run.
        summary: JSON file for the stage's summary, or None.

    Raises:
        InputError: If the application fails, is deleted by somebody else, or cannot be made.
        SystemExit: If this process was asked to stop.
    """
    if executors < 1:
        raise InputError(f"executors is {executors}; give 1 or more")

    def create(job: ClusterJob, call: Object, run: PipelineRun, labels: dict[str, str]) -> None:
        if job.send(_manifest(job.name, stage, call, executors, image, run, labels)):
            logger.info(
                "SparkApplication %s/%s created: %d executors of %d cores",
                *(job.cluster.namespace, job.name, executors, _CORES),
            )

    return run_job(
        SparkApplication,
        stage,
        {**arguments, "engine": "spark"},
        (executors, image),
        inputs=inputs,
        outputs=outputs,
        create=create,
        summary=summary,
    )


def _state(found: Object) -> str:
    return str(found.get("status", {}).get("applicationState", {}).get("state", ""))


def _manifest(
    name: str, stage: str, call: Object, executors: int, image: str, run: PipelineRun, labels: dict[str, str]
) -> dict[str, Any]:
    tracking = run.tracking_environment()
    variables: list[Object] = [{"name": key, "value": literal(value)} for key, value in tracking.items()]
    variables += [_secret(key, _STORAGE, key) for key in storage.VARIABLES]
    variables += [_secret(f"MLFLOW_TRACKING_{key.upper()}", _TRACKING, key) for key in ("username", "password")]
    pod = {
        "serviceAccount": _ACCOUNT,
        "labels": labels,
        "volumeMounts": [{"name": "workspace", "mountPath": MOUNTED}, {"name": "temporary", "mountPath": "/tmp"}],  # noqa: S108
        "podSecurityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "/".join(SparkApplication.resource),
        "kind": SparkApplication.kind,
        "metadata": {"name": name, "labels": labels} | ({"ownerReferences": run.owners} if run.owners else {}),
        "spec": {
            "type": "Python",
            "pythonVersion": "3",
            "mode": "cluster",
            "sparkVersion": SPARK_VERSION,
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "mainApplicationFile": PROGRAM,
            "arguments": [stage, literal(json.dumps(call))],
            # The stage's own retries make a new application; what was wrong with the input stays wrong.
            "restartPolicy": {"type": "Never"},
            "driver": pod | {"cores": 1, "memory": "1g", "memoryOverhead": "2g", "env": variables},
            "executor": pod | {"cores": _CORES, "instances": executors, "memory": "1g", "memoryOverhead": "2g"},
            "volumes": [
                {"name": "workspace", "persistentVolumeClaim": {"claimName": _CLAIM}},
                {"name": "temporary", "emptyDir": {}},
            ],
        },
    }


def _secret(variable: str, secret: str, key: str) -> Object:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}
