"""The pipeline run that this pod is a part of, as Kubernetes knows it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from modelcore.cluster.connection import Cluster, Object


@dataclass(frozen=True)
class PipelineRun:
    """A run of a pipeline.

    Attributes:
        id: KFP's id of it; empty outside of a run.
        owners: What a job of this run belongs to, as ``metadata.ownerReferences``. It is what this pod belongs to: the
            Argo workflow of the run. So a job outlives this pod, whose next attempt finds it again, and goes when the
            run is deleted. A pod that belongs to nothing is the owner itself.
    """

    id: str = ""
    owners: list[Object] = field(default_factory=list)

    @classmethod
    def of_this_pod(cls, cluster: Cluster) -> PipelineRun:
        """The run of the pod that ``KFP_POD_NAME`` names; else, outside of a cluster, the one of ``KFP_RUN_ID``."""
        given, name = os.environ.get("KFP_RUN_ID", ""), os.environ.get("KFP_POD_NAME", "")
        if not name:
            return cls(given)
        pod = cluster.call(f"get pod {name}", cluster.core.read_namespaced_pod, name, cluster.namespace)
        metadata = pod["metadata"]
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": metadata["uid"]}
        for each in metadata.get("ownerReferences", []):
            owner = {key: each[key] for key in ("apiVersion", "kind", "name", "uid")}
        return cls(given or metadata.get("labels", {}).get("pipeline/runid", ""), [owner])
