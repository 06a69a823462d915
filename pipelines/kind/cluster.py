"""The kind cluster: made, found, filled with images, taken away."""

from __future__ import annotations

from collections.abc import Iterable

from modelcore.errors import InputError
from pipelines.kind.programs import CLUSTER, ProgramError, kubectl, run

# Of kind 0.33.0's release notes. KFP 2.17 is tested by its makers on Kubernetes 1.33 and 1.36.
NODE_IMAGE = "kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed"
READY = "300s"


def exists() -> bool:
    """Whether the cluster has been made, running or not."""
    return CLUSTER in run("kind", "get", "clusters", quiet=True).split()


def create() -> None:
    """Makes the cluster and waits for its node.

    Raises:
        ProgramError: If kind fails; it leaves no half-made cluster behind.
    """
    run("kind", "create", "cluster", "--name", CLUSTER, "--image", NODE_IMAGE, "--wait", READY)


def find() -> None:
    """Takes up a cluster that was made before.

    Raises:
        InputError: If it does not answer.
    """
    run("kind", "export", "kubeconfig", "--name", CLUSTER, quiet=True)
    try:
        kubectl("get", "nodes", "--request-timeout=20s", quiet=True)
    except ProgramError as error:
        raise InputError(
            f"the cluster {CLUSTER} is there but does not answer; start it (docker start {CLUSTER}-control-plane) "
            f"or take it away (make local-pipeline-down): {error}"
        ) from None


def load(images: Iterable[str]) -> None:
    """Copies images of this machine into the cluster; those that are there are left out by kind.

    Raises:
        ProgramError: If kind fails.
    """
    run("kind", "load", "docker-image", *images, "--name", CLUSTER)


def delete() -> None:
    """Takes the cluster away with everything in it; nothing happens where there is none.

    Raises:
        ProgramError: If kind fails.
    """
    run("kind", "delete", "cluster", "--name", CLUSTER)
