"""What must be there before anything is made: programs, an engine that answers, images, memory."""

from __future__ import annotations

import sys

import psutil

from components.images import DATA_IMAGE, MLFLOW_IMAGE, MODEL_IMAGE
from modelcore.errors import InputError
from pipelines.kind.programs import ProgramError, find, run

IMAGES = (DATA_IMAGE, MODEL_IMAGE, MLFLOW_IMAGE)

PROGRAMS = {
    "docker": "Docker Engine 24 or newer: https://docs.docker.com/engine/install",
    "kind": "kind 0.33.0: https://kind.sigs.k8s.io/docs/user/quick-start/#installation",
    "kubectl": "kubectl 1.35 to 1.37: https://kubernetes.io/docs/tasks/tools",
    "git": "git, with which kubectl fetches Kubeflow Pipelines' manifests: apt-get install git",
}

# KFP asks for 3,126 MiB (the sum of what 2.17.0 standalone requests), MLflow and its database for 640, a stage takes up
# to 653, a node of Kubernetes itself about one GiB, an estimate.
NEEDED_MIB = 6144


def check_programs() -> None:
    """Makes sure that every program is there and that the container engine answers.

    Raises:
        InputError: If not; it says what to install.
    """
    if missing := [name for name in PROGRAMS if find(name) is None]:
        raise InputError(
            "\n  ".join(["not installed, and needed:", *(f"{name:<8} {PROGRAMS[name]}" for name in missing)])
        )
    try:
        run("docker", "info", "--format", "{{.ServerVersion}}", quiet=True)
    except ProgramError as error:
        raise InputError(f"docker does not answer; start its engine, or join the group docker: {error}") from None


def check_images() -> None:
    """Makes sure that the images are built.

    Raises:
        InputError: If one is missing.
    """
    have = set(run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}", quiet=True).split())
    if missing := [image for image in IMAGES if image not in have]:
        raise InputError(f"not built: {', '.join(missing)}; build them first: make images")


def check_memory() -> None:
    """Makes sure that a new cluster finds room.

    Raises:
        InputError: If less than NEEDED_MIB is free.
    """
    if sys.platform == "linux":
        free, where = psutil.virtual_memory().available, "free on this machine"
    else:  # the engine is a virtual machine of a fixed size
        told, where = run("docker", "info", "--format", "{{.MemTotal}}", quiet=True).strip(), "given to Docker"
        if not told.isdecimal():
            raise InputError(f"docker info says {told!r} where it should say how much memory there is")
        free = int(told)
    if free < NEEDED_MIB * 2**20:
        raise InputError(
            f"{free / 2**30:.1f} GiB of memory are {where}; the cluster needs {NEEDED_MIB / 1024:.0f} GiB: Kubeflow "
            "Pipelines 3.1, MLflow and its database 0.6, a stage 0.7, the node itself about 1. Without a cluster, "
            "`make pipeline` runs the same pipeline in 1 GiB"
        )
