"""Installs Kubeflow Pipelines and MLflow in the cluster, and waits until they are up."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path

from pipelines.kind import credentials
from pipelines.kind.forwarding import forward
from pipelines.kind.programs import ProgramError, kubectl

OVERLAY = Path(__file__).parents[2] / "manifests" / "overlays" / "free-tier"
# Fetched by kubectl, with git, from GitHub; the overlay's kfp/ names the same version.
CUSTOM_RESOURCES = (
    "https://github.com/kubeflow/pipelines/manifests/kustomize/cluster-scoped-resources?ref=2.17.0&timeout=120s"
)
# The first time every image is downloaded, some three GB.
KFP_READY, MLFLOW_READY = "1200s", "600s"


def install() -> None:
    """Installs what is missing and brings what is there up to date; returns when all of it is ready.

    Raises:
        ProgramError: If something cannot be installed, or is not ready in time.
    """
    kubectl("apply", "-k", CUSTOM_RESOURCES)
    kubectl("wait", "--for=condition=established", "--timeout=60s", "crd/applications.app.k8s.io")
    kubectl("apply", "-k", str(OVERLAY / "kfp"))
    kubectl("apply", "-k", str(OVERLAY))
    credentials.ensure_secrets()  # pods wait for them
    kubectl("-n", "kubeflow", "wait", "--for=condition=available", f"--timeout={KFP_READY}", "deployment", "--all")
    for workload in ("statefulset/postgresql", "deployment/mlflow"):
        kubectl("-n", "mlflow", "rollout", "status", workload, f"--timeout={MLFLOW_READY}")
    with forward("mlflow", "mlflow", 5000) as address:
        ensure_user(address, credentials.admin_password(), credentials.MLFLOW_USER, credentials.pipelines_password())


def ensure_user(address: str, admin_password: str, name: str, password: str) -> None:
    """Makes a user of MLflow's, or gives the one that is there this password.

    Args:
        address: MLflow's, ``http://host:port``.
        admin_password: Of the user ``admin``.
        name: The user.
        password: The user's password.

    Raises:
        ProgramError: If MLflow refuses or does not answer.
    """
    body = {"username": name, "password": password}
    try:
        _ask(address, admin_password, "POST", "users/create", body)
    except urllib.error.HTTPError as error:
        if b"RESOURCE_ALREADY_EXISTS" not in error.read():
            raise ProgramError(f"MLflow does not make the user {name}: {error}") from None
        try:
            _ask(address, admin_password, "PATCH", "users/update-password", body)
        except OSError as late:
            raise ProgramError(f"MLflow does not change the password of the user {name}: {late}") from None
    except OSError as error:
        raise ProgramError(f"MLflow at {address} does not answer: {error}") from None


def _ask(address: str, admin_password: str, method: str, path: str, body: dict[str, str]) -> None:
    login = base64.b64encode(f"admin:{admin_password}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310 (http, by the caller)
        f"{address}/api/2.0/mlflow/{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60):  # noqa: S310
        pass
