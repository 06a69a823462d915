"""Says what one would look at when something in the cluster fails: pods, their descriptions and logs, events."""

from __future__ import annotations

import sys
from typing import Any

from pipelines.kind.programs import ProgramError, kubectl, kubectl_json

NAMESPACES = ("kubeflow", "mlflow")
_MOST_PODS = 6  # described in each namespace
_EVENTS = 30


def report() -> None:
    """Prints the state of both namespaces to standard error; what cannot be had is left out."""
    try:
        kubectl("get", "nodes", "--request-timeout=20s", quiet=True)
    except ProgramError as error:
        sys.stderr.write(f"the cluster does not answer: {error}\n")
        return
    for namespace in NAMESPACES:
        _show(f"pods in {namespace}", "-n", namespace, "get", "pods", "-o", "wide")
        for pod in _troubled(namespace)[:_MOST_PODS]:
            _show(f"pod {pod}", "-n", namespace, "describe", "pod", pod)
            logs = ["-n", namespace, "logs", pod, "--all-containers", "--prefix", "--tail=40"]
            _show(f"logs of {pod}", *logs)
            _show(f"logs of {pod} before it was started again", *logs, "--previous", optional=True)
        _show(f"events in {namespace}", "-n", namespace, "get", "events", "--sort-by=.lastTimestamp", last=_EVENTS)


def _troubled(namespace: str) -> list[str]:
    """Names of the pods that have failed, or are neither finished nor ready."""
    try:
        pods = kubectl_json("-n", namespace, "get", "pods")["items"]
        return [pod["metadata"]["name"] for pod in pods if not _is_well(pod["status"])]
    except (ProgramError, KeyError, TypeError, AttributeError):  # or it is not what Kubernetes prints
        return []


def _is_well(status: dict[str, Any]) -> bool:
    if status.get("phase") == "Succeeded":
        return True
    ready = [c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", [])]
    return status.get("phase") == "Running" and any(ready)


def _show(title: str, *words: str, optional: bool = False, last: int | None = None) -> None:
    try:
        said = kubectl(*words, quiet=True).rstrip()
    except ProgramError as error:
        if optional:
            return
        said = str(error)
    if last is not None:
        said = "\n".join(said.splitlines()[-last:])
    sys.stderr.write(f"\n--- {title}\n{said or '(nothing)'}\n")
