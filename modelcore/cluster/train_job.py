"""A TrainJob of Kubeflow Trainer: made or found again, followed to its end, removed.

The API is that of Trainer 2.3, https://www.kubeflow.org/docs/components/trainer/. A job is built of the kubeflow SDK's
models. It is not sent with the SDK's ``TrainerClient.train``, which can give it neither owners nor processes a node and
tries nothing twice; nor followed with ``wait_for_job_status``, which gives up after a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kubeflow.trainer.constants import constants
from kubeflow_trainer_api import models
from kubernetes import client
from kubernetes.utils import parse_quantity

from modelcore.cluster.connection import Cluster, Object
from modelcore.errors import InputError, first_line

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


class TrainJob:
    """The TrainJob of a name.

    Args:
        cluster: Where it is.
        name: Its name.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.uid = ""  # of the job that this object made or found

    def find(self) -> Object | None:
        """The job as it is now, or None."""
        place = (*_RESOURCE, self.cluster.namespace, constants.TRAINJOB_PLURAL, self.name)
        try:
            found = self.cluster.call(
                f"get TrainJob {self.name}", self.cluster.custom.get_namespaced_custom_object, *place
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        self.uid = found["metadata"]["uid"]
        return found

    def create(self, spec: TrainJobSpec) -> Object:
        """Makes the job. One that is there already, from a request whose answer was lost, is it.

        Raises:
            InputError: If there is no such runtime, or the cluster refuses.
        """
        manifest = _manifest(self.cluster, spec)
        place = (*_RESOURCE, self.cluster.namespace, constants.TRAINJOB_PLURAL)
        try:
            made = self.cluster.call(
                f"create TrainJob {self.name}",
                self.cluster.custom.create_namespaced_custom_object,
                *place,
                manifest,
            )
        except client.ApiException as error:
            found = self.find() if error.status == 409 else None
            if found is None:
                raise InputError(
                    f"TrainJob {self.name} cannot be created ({first_line(error)}); is Kubeflow Trainer 2.3 installed?"
                ) from None
            return found
        self.uid = made["metadata"]["uid"]
        logger.info(
            "TrainJob %s/%s created: runtime %s, %d nodes of %d processes",
            *(self.cluster.namespace, self.name, spec.runtime, spec.nodes, spec.processes_per_node),
        )
        return made

    def delete(self, patience: float = float("inf")) -> None:
        """Removes the job that was made or found, and what Trainer made for it; no other one of its name."""
        place = (*_RESOURCE, self.cluster.namespace, constants.TRAINJOB_PLURAL, self.name)
        only = client.V1Preconditions(uid=self.uid) if self.uid else None
        try:
            self.cluster.call(
                f"delete TrainJob {self.name}",
                self.cluster.custom.delete_namespaced_custom_object,
                *place,
                patience=patience,
                body=client.V1DeleteOptions(propagation_policy="Foreground", preconditions=only),
            )
        except client.ApiException as error:
            if error.status not in (404, 409):  # it is gone, or another's
                raise

    def wait_until_gone(self) -> None:
        """Waits until the job, which was deleted, is no more."""
        for jobs in self.changes(threading.Event()):
            if not any(job["metadata"]["uid"] == self.uid for job in jobs):
                return

    def changes(self, ended: threading.Event) -> Iterator[list[Object]]:
        """The job in a list, or an empty one: now, and whenever it changes, until ``ended`` is set."""
        return self.cluster.watch(
            f"watch TrainJob {self.name}",
            self.cluster.custom.list_namespaced_custom_object,
            *(*_RESOURCE, self.cluster.namespace, constants.TRAINJOB_PLURAL),
            field_selector=f"metadata.name={self.name}",
            ended=ended,
        )


def condition(job: Object, kind: str) -> Object | None:
    """The condition of a kind, if it is true of a job: ``Complete``, ``Failed`` or ``Suspended``."""
    for each in job.get("status", {}).get("conditions", []):
        if each["type"] == kind and each["status"] == "True":
            return dict(each)
    return None


def _manifest(cluster: Cluster, spec: TrainJobSpec) -> Object:
    kind, runtime = _runtime(cluster, spec.runtime)
    queue = {key: value for key, value in runtime["metadata"].get("labels", {}).items() if key.startswith(_QUEUE)}
    environment = [models.IoK8sApiCoreV1EnvVar(name=name, value=value) for name, value in spec.environment.items()]
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
                command=list(spec.command),
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
