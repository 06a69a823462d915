"""MLflow's model registry: versions of a model, and the aliases ``@candidate`` and ``@champion``.

Runs are tracked in :mod:`modelcore.mlflow_runs`.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from modelcore import mlflow_sink, relay, tracking
from modelcore.errors import InputError
from modelcore.loading import loading

logger = logging.getLogger(__name__)

_PROGRESS_BAR = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model.

    Attributes:
        version: Its number in the registry.
        tags: What was recorded with it, for example ``bits_per_byte`` and ``heldout_digest``.
    """

    version: int
    tags: dict[str, str]


class AwayError(InputError):
    """The server that keeps the registry did not answer."""


def is_away(error: Exception) -> bool:
    """Whether an error says that the server cannot be reached, or can do nothing now."""
    return isinstance(error, AwayError) or (
        tracking.fault_of(error) is not None and mlflow_sink.undelivered(error).kind == "away"
    )


_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")
REMOTE: dict[str, Callable[..., Any]] = {}
"""The functions below that speak to MLflow, by name: what a driver does for a stage that cannot reach it."""


def _or_the_driver(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """Has the process that drives the pipeline do it where this one, in a container, cannot reach MLflow."""
    REMOTE[function.__name__] = function

    @functools.wraps(function)
    def either(*values: _Given.args, **named: _Given.kwargs) -> _Found:
        if os.environ.get("MLFLOW_TRACKING_URI") != relay.URI:
            return function(*values, **named)
        given = inspect.signature(function).bind(*values, **named).arguments
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        found: Any = relay.ask_registry(function.__name__, plain)
        return cast(_Found, RegisteredVersion(**found) if isinstance(found, dict) else found)

    return either


def check_name(name: str) -> None:
    """Refuses what the registry would refuse later, or what would have to be quoted.

    Raises:
        InputError: If ``name`` has other characters than letters, digits, ``-`` and ``_``.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"model name {name!r} is not usable; take letters, digits, '-' and '_'")


@_or_the_driver
def find_alias(name: str, alias: str) -> RegisteredVersion | None:
    """The version of model ``name`` that carries ``alias``, or None where there is no such model or alias."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    try:
        found = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return RegisteredVersion(int(found.version), dict(found.tags))


@_or_the_driver
def find_version(name: str, tags: Mapping[str, str]) -> RegisteredVersion | None:
    """The newest version of model ``name`` that carries all of ``tags``, or None."""
    from mlflow.tracking import MlflowClient

    versions = MlflowClient().search_model_versions(f"name = '{name}'")
    for found in sorted(versions, key=lambda version: -int(version.version)):
        if tags.items() <= found.tags.items():
            return RegisteredVersion(int(found.version), dict(found.tags))
    return None


@_or_the_driver
def register_huggingface(name: str, export: Path, run_id: str, tags: Mapping[str, str]) -> int:
    """Logs a Hugging Face folder to a run as an MLflow model and registers it as a new version.

    Args:
        name: Name in the registry; made where it is new.
        export: The folder, with model and tokenizer.
        run_id: The run that the model belongs to.
        tags: Recorded with the version.

    Returns:
        The version's number.
    """
    # Everything is on this disk: the hub would only be asked for a model card that does not exist.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    mlflow_sink.be_patient()  # a model's files are large
    with loading():
        import mlflow.transformers
        import transformers
        from transformers import PreTrainedModel, pipeline  # noqa: F401, what every model imports first

        import mlflow

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)
    # A pipeline object, not the folder's path: with transformers 5 mlflow 3.17 fails on a path.
    generator = pipeline("text-generation", model=str(export), device="cpu")
    requirements = [f"{package}=={installed_version(package).split('+')[0]}" for package in ("transformers", "torch")]
    with mlflow.start_run(run_id=run_id):
        logged = mlflow.transformers.log_model(
            transformers_model=generator,
            name=name,
            registered_model_name=name,
            pip_requirements=requirements,
            await_registration_for=60,
        )
    version = int(logged.registered_model_version)
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, value)
    return version


def download_huggingface(name: str, version: int, into: Path) -> Path:
    """The Hugging Face folder of a version, as :func:`register_huggingface` took it.

    MLflow keeps a model's tokenizer apart from its weights; whoever loads the folder looks for both in one.

    Args:
        name: Name in the registry.
        version: The version's number.
        into: An empty folder of this process.

    Returns:
        The folder, below ``into``.

    Raises:
        InputError: If the version is no Hugging Face model with a tokenizer.
    """
    mlflow_sink.be_patient()
    with loading():
        from mlflow.artifacts import download_artifacts

    os.environ.setdefault(_PROGRESS_BAR, "false")
    logged = Path(download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=str(into)))
    folder = logged / "model"
    tokenizer = logged / "components" / "tokenizer"
    if not ((folder / "config.json").is_file() and tokenizer.is_dir()):
        raise InputError(f"version {version} of {name} is no Hugging Face model with a tokenizer")
    for file in tokenizer.iterdir():
        file.rename(folder / file.name)
    return folder


@_or_the_driver
def set_alias(name: str, alias: str, version: int) -> None:
    """Makes ``alias`` of model ``name`` point to ``version``."""
    from mlflow.tracking import MlflowClient

    MlflowClient().set_registered_model_alias(name, alias, str(version))


@_or_the_driver
def download_beside(name: str, version: int, folder: str, into: Path) -> bool:
    """Fetches the artifacts ``folder`` of the run that registered a version; False where that has none.

    Args:
        name: The model's name.
        version: Its version.
        folder: The artifact folder.
        into: An existing folder; the files come to ``into / folder``.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    os.environ.setdefault(_PROGRESS_BAR, "false")
    client = MlflowClient()
    run_id = client.get_model_version(name, str(version)).run_id
    if not run_id or not client.list_artifacts(run_id, folder):
        return False
    download_artifacts(run_id=run_id, artifact_path=folder, dst_path=str(into))
    return True
