"""A job that an operator of the cluster runs: found again, looked at, removed. What kind it is, a subclass says."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

from kubernetes import client

from modelcore.cluster.connection import Cluster, Object
from modelcore.errors import InputError, first_line

_CONFLICTS = 5  # of a request to make a job, in a row


class JobEndedError(InputError):
    """The job has failed, or was deleted: nothing of it runs any more."""


class ClusterJob(ABC):
    """The job of a name.

    Args:
        cluster: Where it is.
        name: Its name.

    Attributes:
        kind: What it is, for messages and in its manifest.
        resource: Group and version of the kind.
        plural: The kind's name in addresses.
        operator: Who runs such jobs.
        container: The container of its pods whose log is told.
        keeps: What stays of a job that is deleted, for a message; empty: nothing.
    """

    kind: str
    resource: tuple[str, str]
    plural: str
    operator: str
    container: str
    keeps = ""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.uid = ""  # of the job that this object made or found

    @property
    @abstractmethod
    def pods(self) -> str:
        """The label selector of its pods."""

    @abstractmethod
    def speaks_for_all(self, pod: Object) -> bool:
        """Whether a pod's log is the job's."""

    @abstractmethod
    def is_complete(self, found: Object) -> bool:
        """Whether the job, as it was found, has done its work."""

    @abstractmethod
    def failure(self, found: Object) -> str | None:
        """What the job, as it was found, says of its failure, which may be nothing; None if it has not failed."""

    def suspension(self, found: Object) -> str | None:
        """What the job, as it was found, says of being suspended, which may be nothing; None if it is not."""
        return "" if found["spec"].get("suspend") else None

    def find(self) -> Object | None:
        """The job as it is now, or None."""
        place = (*self.resource, self.cluster.namespace, self.plural, self.name)
        try:
            found = self.cluster.call(
                f"get {self.kind} {self.name}", self.cluster.custom.get_namespaced_custom_object, *place
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise
        self.uid = found["metadata"]["uid"]
        return found

    def send(self, manifest: Object) -> bool:
        """Makes the job. One that is there already, from a request whose answer was lost, is it.

        Returns:
            Whether it is new.

        Raises:
            InputError: If the cluster refuses.
        """
        place = (*self.resource, self.cluster.namespace, self.plural)
        create = self.cluster.custom.create_namespaced_custom_object
        for conflicts in range(_CONFLICTS):
            try:
                made = self.cluster.call(f"create {self.kind} {self.name}", create, *place, manifest)
            except client.ApiException as error:
                if error.status == 409:
                    if self.find() is not None:
                        return False
                    # One was just removed, or a quota of the namespace changed meanwhile.
                    refusal = first_line(error)
                    time.sleep(self.cluster.wait_seconds(conflicts))
                    continue
                raise InputError(
                    f"{self.kind} {self.name} cannot be created ({first_line(error)}); is {self.operator} installed?"
                ) from None
            self.uid = made["metadata"]["uid"]
            return True
        raise InputError(f"{self.kind} {self.name} cannot be created ({refusal}, {_CONFLICTS} times)")

    def delete(self, patience: float = float("inf")) -> bool:
        """Removes the job that was made or found, and what was made for it; no other one of its name.

        Returns:
            Whether it was there.
        """
        place = (*self.resource, self.cluster.namespace, self.plural, self.name)
        only = client.V1Preconditions(uid=self.uid) if self.uid else None
        try:
            self.cluster.call(
                f"delete {self.kind} {self.name}",
                self.cluster.custom.delete_namespaced_custom_object,
                *place,
                patience=patience,
                body=client.V1DeleteOptions(propagation_policy="Foreground", preconditions=only),
            )
        except client.ApiException as error:
            if error.status not in (404, 409):  # it is gone, or another's
                raise
            return False
        return True

    def wait_until_gone(self) -> None:
        """Waits until the job, which was deleted, is no more."""
        for jobs in self.changes(threading.Event()):
            if not any(job["metadata"]["uid"] == self.uid for job in jobs):
                return

    def changes(self, ended: threading.Event) -> Iterator[list[Object]]:
        """The job in a list, or an empty one: now, and whenever it changes, until ``ended`` is set."""
        return self.cluster.watch(
            f"watch {self.kind} {self.name}",
            self.cluster.custom.list_namespaced_custom_object,
            *(*self.resource, self.cluster.namespace, self.plural),
            field_selector=f"metadata.name={self.name}",
            ended=ended,
        )


def literal(text: str) -> str:
    """A text that Kubernetes, which replaces ``$(NAME)`` in commands and variables, leaves as it is.

    So no name of a run or a recipe can spell the value of a secret:
    https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/.
    """
    return text.replace("$", "$$")
