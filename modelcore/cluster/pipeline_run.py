"""The pipeline run that this pod is a part of, as Kubernetes knows it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from kubernetes import client

from modelcore.cluster.connection import Cluster, Object
from modelcore.errors import InputError, first_line

# Where tracking goes. Who signs in there, and the keys of object storage, are secrets that the job's pods name.
_TRACKING = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_WORKSPACE",
    "KFP_RUN_NAME",
)
# Argo's name of the task, https://argo-workflows.readthedocs.io/en/latest/workflow-notifications/; that of an attempt
# ends with its number.
_NODE, _ATTEMPT = "workflows.argoproj.io/node-name", re.compile(r"\(\d+\)$")
# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class PipelineRun:
    """A run of a pipeline.

    Attributes:
        id: KFP's id of it; empty outside of a run.
        owners: What a job of this run belongs to, as ``metadata.ownerReferences``. It is what this pod belongs to: the
            Argo workflow of the run. So a job outlives this pod, whose next attempt finds it again, and goes when the
            run is deleted. A pod that belongs to nothing is the owner itself.
        task: Which of the run's tasks this pod is an attempt at; empty where that is not known.
    """

    id: str = ""
    owners: list[Object] = field(default_factory=list)
    task: str = ""

    @classmethod
    def of_this_pod(cls, cluster: Cluster) -> PipelineRun:
        """The run of the pod that ``KFP_POD_NAME`` names; else, outside of a cluster, the one of ``KFP_RUN_ID``."""
        given, name = os.environ.get("KFP_RUN_ID", ""), os.environ.get("KFP_POD_NAME", "")
        if not name:
            return cls(given)
        try:
            pod = cluster.call(f"get pod {name}", cluster.core.read_namespaced_pod, name, cluster.namespace)
        except client.ApiException as error:
            raise InputError(
                f"KFP_POD_NAME names the pod {name}, which is not in namespace {cluster.namespace}: {first_line(error)}"
            ) from None
        metadata = pod["metadata"]
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": metadata["uid"]}
        for each in metadata.get("ownerReferences", []):
            owner = {key: each[key] for key in ("apiVersion", "kind", "name", "uid")}
        run = given or metadata.get("labels", {}).get("pipeline/runid", "")
        return cls(run, [owner], _ATTEMPT.sub("", metadata.get("annotations", {}).get(_NODE, "")))

    def labels(self) -> dict[str, str]:
        """By which the jobs of the run are found; none where the id is no label's value."""
        return {"pipeline/runid": self.id} if _LABEL.fullmatch(self.id) else {}

    def tracking_environment(self) -> dict[str, str]:
        """The variables that lead a job's processes to the run in MLflow."""
        given = {name: os.environ[name] for name in _TRACKING if os.environ.get(name)}
        return given | ({"KFP_RUN_ID": self.id} if self.id else {})
