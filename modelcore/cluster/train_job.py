"""A TrainJob of Kubeflow Trainer: made or found again, followed to its end, removed.

The API is that of Trainer 2.3, https://www.kubeflow.org/docs/components/trainer/. A job is built of the kubeflow SDK's
models. It is not sent with the SDK's ``TrainerClient.train``, which can give it neither owners nor processes a node and
tries nothing twice; nor followed with ``wait_for_job_status``, which gives up after a time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kubeflow.trainer.constants import constants
from kubeflow_trainer_api import models
from kubernetes import client
from kubernetes.utils import parse_quantity

from modelcore.cluster.cluster_job import ClusterJob, literal
from modelcore.cluster.connection import Cluster, Object
from modelcore.errors import InputError

logger = logging.getLogger(__name__)

_RESOURCE = (constants.GROUP, constants.VERSION)
_QUEUE = "kueue.x-k8s.io/"  # labels of Kueue's, which looks for them at the job and not at its runtime


@dataclass(frozen=True)
class TrainJobSpec:
    """What a TrainJob is to be.

    Attributes:
        name: Its name, the same whenever the same is asked for.
        runtime: The (Cluster)TrainingRuntime that it runs on.
        command: What each node runs.
        nodes: Pods.
        processes_per_node: Processes that torchrun starts in each. A pod gets so many times the resources that the
            runtime names, which are those of one process.
        environment: Variables for the processes; no secrets, for the job can be read.
        labels: Labels of the job.
        owners: What it belongs to, as ``metadata.ownerReferences``.
    """

    name: str
    runtime: str
    command: Sequence[str]
    nodes: int = 1
    processes_per_node: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    owners: Sequence[Object] = ()

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name, value in (("nodes", self.nodes), ("processes_per_node", self.processes_per_node)):
            if value < 1:
                raise InputError(f"{name} is {value}; give 1 or more")


class TrainJob(ClusterJob):
    """The TrainJob of a name."""

    kind, resource, plural = constants.TRAINJOB_KIND, _RESOURCE, constants.TRAINJOB_PLURAL
    operator, container, keeps = "Kubeflow Trainer 2.3", constants.NODE, "its checkpoints stay"

    @property
    def pods(self) -> str:
        """The label selector of its pods."""
        return f"{constants.JOBSET_NAME_LABEL}={self.name}"

    def speaks_for_all(self, pod: Object) -> bool:
        """Whether it is the pod of rank 0: the first one of the nodes, by the order that Trainer gives them."""
        labels: dict[str, str] = pod["metadata"].get("labels", {})
        job, index = labels.get(constants.JOBSET_RJOB_NAME_LABEL), labels.get(constants.JOB_INDEX_LABEL)
        return bool(job == constants.NODE) and index == "0"

    def is_complete(self, found: Object) -> bool:
        """Whether the job, as it was found, has done its work."""
        return _condition(found, "Complete") is not None

    def failure(self, found: Object) -> str | None:
        """What the job, as it was found, says of its failure, which may be nothing; None if it has not failed."""
        failed = _condition(found, "Failed")
        return None if failed is None else " ".join(filter(None, (failed.get("reason"), failed.get("message"))))

    def suspension(self, found: Object) -> str | None:
        """What the job, as it was found, says of being suspended, which may be nothing; None if it is not."""
        suspended = _condition(found, "Suspended")
        return super().suspension(found) if suspended is None else str(suspended.get("message", ""))

    def create(self, spec: TrainJobSpec) -> None:
        """Makes the job. One that is there already, from a request whose answer was lost, is it.

        Raises:
            InputError: If there is no such runtime, or the cluster refuses.
        """
        if self.send(_manifest(self.cluster, spec)):
            logger.info(
                "TrainJob %s/%s created: runtime %s, %d nodes of %d processes",
                *(self.cluster.namespace, self.name, spec.runtime, spec.nodes, spec.processes_per_node),
            )


def _condition(job: Object, kind: str) -> Object | None:
    """The condition of a kind, if it is true of a job: ``Complete``, ``Failed`` or ``Suspended``."""
    for each in job.get("status", {}).get("conditions", []):
        if each["type"] == kind and each["status"] == "True":
            return dict(each)
    return None


def _manifest(cluster: Cluster, spec: TrainJobSpec) -> Object:
    kind, runtime = _runtime(cluster, spec.runtime)
    queue = {key: value for key, value in runtime["metadata"].get("labels", {}).items() if key.startswith(_QUEUE)}
    environment = [
        models.IoK8sApiCoreV1EnvVar(name=name, value=literal(value)) for name, value in spec.environment.items()
    ]
    job = models.TrainerV1alpha1TrainJob(
        apiVersion=constants.API_VERSION,
        kind=constants.TRAINJOB_KIND,
        metadata=models.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
            name=spec.name,
            labels={**queue, **spec.labels},
            ownerReferences=[
                models.IoK8sApimachineryPkgApisMetaV1OwnerReference.from_dict(owner) for owner in spec.owners
            ]
            or None,
        ),
        spec=models.TrainerV1alpha1TrainJobSpec(
            runtimeRef=models.TrainerV1alpha1RuntimeRef(apiGroup=constants.GROUP, kind=kind, name=spec.runtime),
            trainer=models.TrainerV1alpha1Trainer(
                command=[literal(word) for word in spec.command],
                env=environment or None,
                numNodes=spec.nodes,
                numProcPerNode=spec.processes_per_node,
                resourcesPerNode=_resources(runtime, spec.processes_per_node),
            ),
        ),
    )
    return dict(job.to_dict())


def _runtime(cluster: Cluster, name: str) -> tuple[str, Object]:
    """The runtime of a name, the namespace's before the cluster's, as Trainer's SDK has it; and of which kind it is."""
    where = {
        "TrainingRuntime": (cluster.custom.get_namespaced_custom_object, constants.TRAINING_RUNTIME_PLURAL),
        "ClusterTrainingRuntime": (cluster.custom.get_cluster_custom_object, constants.CLUSTER_TRAINING_RUNTIME_PLURAL),
    }
    for kind, (function, plural) in where.items():
        place = (cluster.namespace, plural, name) if kind == "TrainingRuntime" else (plural, name)
        try:
            return kind, cluster.call(f"get {kind} {name}", function, *_RESOURCE, *place)
        except client.ApiException as error:
            if error.status != 404:
                raise
    raise InputError(
        f"there is no training runtime {name!r}, neither in namespace {cluster.namespace} nor of the whole cluster; "
        "the enterprise overlay brings aic-gpt-torch, see: kubectl get clustertrainingruntimes"
    )


def _resources(runtime: Object, processes: int) -> models.IoK8sApiCoreV1ResourceRequirements | None:
    """What the runtime's training container asks for, which is one process's, for so many."""
    for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]:
        for container in job["template"]["spec"]["template"]["spec"]["containers"]:
            if container["name"] == constants.NODE and container.get("resources"):
                asked = {
                    part: {name: _times(quantity, processes) for name, quantity in values.items()}
                    for part, values in container["resources"].items()
                    if part in ("requests", "limits")
                }
                return models.IoK8sApiCoreV1ResourceRequirements.from_dict(asked)
    return None


def _times(quantity: str | int, factor: int) -> str:
    """A quantity of Kubernetes' times a number: 500m twice is 1, 8Gi twice is 17179869184."""
    return f"{(parse_quantity(quantity) * factor).normalize():f}"
