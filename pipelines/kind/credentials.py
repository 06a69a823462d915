"""The secrets of the cluster: made once, drawn at random, kept nowhere but in it.

Their values go to kubectl by its standard input, never as an argument, where every user of the machine could read them.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable

from pipelines.kind.programs import ProgramError, kubectl, kubectl_json
from pipelines.profile import STORAGE_SECRET

MLFLOW_USER = "pipelines"  # whom runs are made by in MLflow; no administrator
_REGION = "us-east-1"  # SeaweedFS takes any


def ensure_secrets() -> None:
    """Makes every secret that MLflow, its database, KFP and the stages read, where it is not there yet.

    Raises:
        ProgramError: If kubectl fails, or a secret that is there lacks a value.
    """
    key = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), storage_key(), strict=True))
    database = _ensure("mlflow", "postgresql", lambda: {"password": secrets.token_hex(24)})["password"]
    _ensure(
        "mlflow",
        "mlflow",
        lambda: {
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://mlflow:{database}@postgresql.mlflow.svc:5432/mlflow",
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(16),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            **key,
        },
    )
    _ensure(
        "kubeflow",
        "kfp-mlflow-credentials",
        lambda: {"username": MLFLOW_USER, "password": secrets.token_hex(16)},
    )
    endpoint = {"AWS_ENDPOINT_URL": "http://seaweedfs.kubeflow.svc.cluster.local:9000", "AWS_DEFAULT_REGION": _REGION}
    _ensure("kubeflow", STORAGE_SECRET, lambda: key | endpoint)


def admin_password() -> str:
    """MLflow's administrator's password."""
    return _read("mlflow", "mlflow", "MLFLOW_AUTH_ADMIN_PASSWORD")["MLFLOW_AUTH_ADMIN_PASSWORD"]


def pipelines_password() -> str:
    """The password of MLFLOW_USER."""
    return _read("kubeflow", "kfp-mlflow-credentials", "password")["password"]


def storage_key() -> tuple[str, str]:
    """Access key and secret key of KFP's object store."""
    store = _read("kubeflow", "mlpipeline-minio-artifact", "accesskey", "secretkey")
    return store["accesskey"], store["secretkey"]


def _ensure(namespace: str, name: str, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The secret's values, made by ``make`` if it is not there."""
    made = make()
    if not kubectl("-n", namespace, "get", "secret", name, "--ignore-not-found", "-o", "name", quiet=True).strip():
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": "Opaque",
            "stringData": made,
        }
        kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    return _read(namespace, name, *made)


def _read(namespace: str, name: str, *keys: str) -> dict[str, str]:
    """The secret's values; ``keys`` are those that it must have."""
    secret = kubectl_json("-n", namespace, "get", "secret", name)
    try:
        values = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    except (KeyError, AttributeError, TypeError, ValueError):
        values = {}
    if missing := [key for key in keys if not values.get(key)]:
        raise ProgramError(f"the secret {name} in {namespace} has no {' and no '.join(missing)}")
    return values
