"""The objects of a Kubernetes API server, in memory: what is kept of each, and what is refused.

Manifests are held against the real schemas (:mod:`kubernetes_schemas`), changes against immutable fields; what belongs
to an object goes with that object.
"""

from __future__ import annotations

import copy
import datetime
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.servers.kubernetes_schemas import change_faults, faults

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind of objects, as it stands in addresses."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


RESOURCES = (
    Resource("", "v1", "pods", "Pod"),
    Resource("", "v1", "events", "Event"),
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "secrets", "Secret"),
    Resource("", "v1", "services", "Service"),
    Resource("argoproj.io", "v1alpha1", "workflows", "Workflow"),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime"),
    Resource("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", "ClusterTrainingRuntime", False),
    Resource("sparkoperator.k8s.io", "v1beta2", "sparkapplications", "SparkApplication"),
)


class RefusedError(Exception):
    """What is not done; ``status`` is the answer's body, of the kind Status."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
        self.status |= {"reason": reason, "message": message}


class Objects:
    """The objects of a namespace, and of the cluster.

    Attributes:
        namespace: The namespace.
        changed: Notified of whatever changes; its lock is held meanwhile.
        history: Every change: version, what it was (``ADDED``, ``MODIFIED``, ``DELETED``), kind, object.
        version: The newest version.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.changed = threading.Condition(threading.RLock())
        self.history: list[tuple[int, str, Resource, Object]] = []
        self.version = 0
        self._objects: dict[tuple[Resource, str], Object] = {}

    def create(self, manifest: Object) -> Object:
        """Adds an object, whatever rules there are."""
        return self.add(_resource(manifest["apiVersion"], manifest["kind"]), copy.deepcopy(manifest))

    def find(self, kind: str, name: str) -> Object | None:
        """A copy of an object as it is now."""
        with self.changed:
            return copy.deepcopy(self._objects.get((by_kind(kind), name)))

    def all(self, kind: str) -> list[Object]:
        """Copies of all objects of a kind, in the order in which they came."""
        with self.changed:
            return [copy.deepcopy(each) for (resource, _), each in self._objects.items() if resource.kind == kind]

    def change(self, kind: str, name: str, change: Callable[[Object], None]) -> None:
        """Changes an object in place."""
        with self.changed:
            self.put(by_kind(kind), name, change)

    def delete(self, kind: str, name: str) -> None:
        """Removes an object, and what belongs to it alone."""
        with self.changed:
            self.remove(by_kind(kind), name)

    def get(self, resource: Resource, name: str) -> Object:
        """A copy of an object, or the refusal that says that it is not there."""
        found = self._objects.get((resource, name))
        if found is None:
            full = f"{resource.plural}.{resource.group}".rstrip(".")
            raise RefusedError(404, "NotFound", f'{full} "{name}" not found')
        return copy.deepcopy(found)

    def add(self, resource: Resource, manifest: Object, check: bool = False) -> Object:
        """Adds an object; ``check``: as who asks over HTTP may."""
        with self.changed:
            metadata = manifest.setdefault("metadata", {})
            if check and (metadata.get("namespace", self.namespace) != self.namespace) and resource.namespaced:
                raise RefusedError(400, "BadRequest", "the namespace of the object does not match the address")
            name = metadata["name"]
            if (resource, name) in self._objects:
                full = f"{resource.plural}.{resource.group}".rstrip(".")
                raise RefusedError(409, "AlreadyExists", f'{full} "{name}" already exists')
            if check and (wrong := list(faults(manifest))):
                raise RefusedError(422, "Invalid", f'{resource.kind} "{name}" is invalid: {"; ".join(wrong)}')
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now}
            if resource.namespaced:
                metadata["namespace"] = self.namespace
            self._objects[resource, name] = manifest
            return self._note("ADDED", resource, manifest)

    def put(self, resource: Resource, name: str, change: Callable[[Object], Any], check: bool = False) -> Object:
        """Changes an object; ``check``: as who asks over HTTP may."""
        old = self.get(resource, name)
        new = copy.deepcopy(old)
        change(new)
        if check and (wrong := [*change_faults(old, new), *faults(new)]):
            raise RefusedError(422, "Invalid", f'{resource.kind} "{name}" is invalid: {"; ".join(wrong)}')
        self._objects[resource, name] = new
        return self._note("MODIFIED", resource, new)

    def remove(self, resource: Resource, name: str) -> None:
        """Removes an object, and what belongs to it alone."""
        gone = self._objects.pop((resource, name))
        self._note("DELETED", resource, gone)
        uid, alive = gone["metadata"]["uid"], {each["metadata"]["uid"] for each in self._objects.values()}
        for (kind, dependent), each in list(self._objects.items()):
            owners = {owner["uid"] for owner in each["metadata"].get("ownerReferences", [])}
            if uid in owners and not owners & alive and (kind, dependent) in self._objects:
                self.remove(kind, dependent)

    def _note(self, what: str, resource: Resource, each: Object) -> Object:
        self.version += 1
        each["metadata"]["resourceVersion"] = str(self.version)
        told = copy.deepcopy(each)
        self.history.append((self.version, what, resource, told))
        self.changed.notify_all()
        return copy.deepcopy(told)


def _resource(api_version: str, kind: str) -> Resource:
    return next(each for each in RESOURCES if (each.api_version, each.kind) == (api_version, kind))


def by_kind(kind: str) -> Resource:
    """The resource of a kind."""
    return next(each for each in RESOURCES if each.kind == kind)


def selected(each: Object, query: dict[str, str]) -> bool:
    """Whether an object is one that the selectors of labels and fields name."""
    labels = each["metadata"].get("labels", {})
    for term in re.findall(r"[^,(]+(?:\([^)]*\))?", query.get("labelSelector", "")):
        if found := re.fullmatch(r"\s*(\S+) in \(([^)]*)\)\s*", term):
            if labels.get(found[1]) not in [value.strip() for value in found[2].split(",")]:
                return False
        else:
            key, _, value = term.strip().replace("==", "=").partition("=")
            if labels.get(key) != value:
                return False
    for key, value in terms(query):
        at: Any = each
        for part in key.split("."):
            at = at.get(part, {}) if isinstance(at, dict) else {}
        if at != value:
            return False
    return True


def terms(query: dict[str, str]) -> list[tuple[str, str]]:
    """The fields that a field selector names, with their values."""
    pairs = [term.partition("=") for term in query.get("fieldSelector", "").split(",")]
    return [(key, value) for key, _, value in pairs if key]


def merge(each: Object, patch: Object) -> None:
    """A JSON merge patch (RFC 7396), in place."""
    for key, value in patch.items():
        if value is None:
            each.pop(key, None)
        elif isinstance(value, dict) and isinstance(each.get(key), dict):
            merge(each[key], value)
        else:
            each[key] = value
