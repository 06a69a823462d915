"""Serves what MLflow's registry names: ``python -m pipelines.promotion``.

An alias of the registry, ``@champion`` or ``@candidate``, names a version of the model ``aic-gpt``, the one that the
overlay serves and the pipelines register. This copies its Hugging Face folder to ``MODELS/aic-gpt/vN``, where KServe
finds it, and writes ``versions.yaml`` of the enterprise overlay: one InferenceService a served version, and the route
that divides requests among them. Once that file is committed, Argo CD does the rest.

One InferenceService a version, and not KServe's own canary: ``canaryTrafficPercent`` works with Knative alone, and
``spec.canary`` of KServe 0.20.0 starts a second version but sends no requests to it (kserve/kserve#5912 came later).
And so a version that is promoted goes on in the pods it has, and the one before goes when they serve. Each has all the
replicas of the template, whatever its share: none is taken from the version that serves before the new one does.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from modelcore import logs, registry, storage, tracking
from modelcore.atomic import write_json, write_text
from modelcore.errors import InputError
from modelcore.files import file_digest
from pipelines import enterprise_values

logger = logging.getLogger(__name__)

# In the registry, and the name of what serves it: route, access, disruption budget, network policies, monitors.
MODEL = "aic-gpt"
OVERLAY = Path(__file__).parents[1] / "manifests" / "overlays" / "enterprise"
TEMPLATE, VERSIONS = Path("serving/inference-service.yaml"), Path("serving/versions.yaml")
VERSION_LABEL = "aic-gpt/version"
MANIFEST = "manifest.json"
_HEAD = "# Written by `python -m pipelines.promotion`, after inference-service.yaml. The bucket is put in by values/.\n"


def divide(
    champion: int,
    candidate: int | None = None,
    *,
    served: int | None = None,
    canary: str = "candidate",
    percent: int = 0,
) -> dict[int, int]:
    """How requests are divided among versions.

    Args:
        champion: The version that ``@champion`` names.
        candidate: The one that ``@candidate`` names, or None.
        served: The version that takes most requests now, or None.
        canary: What gets ``percent`` of the requests. ``candidate``: beside the champion, which gets the rest.
            ``champion``: a new champion, beside what is served now.
        percent: 0 to 100.

    Returns:
        Percent of the requests by version; the one that takes the rest comes first, and none has 0.

    Raises:
        InputError: If ``percent`` is out of range.
    """
    if not 0 <= percent <= 100:
        raise InputError(f"canary-percent is {percent}; give 0 to 100")
    stable, new = (champion, candidate) if canary == "candidate" else (served or champion, champion)
    if new is None or new == stable:
        return {stable: 100}
    shares = {stable: 100 - percent, new: percent}
    return {version: share for version, share in shares.items() if share}


def manifests(template: dict[str, Any], shares: dict[int, int]) -> list[dict[str, Any]]:
    """The InferenceServices of the served versions, and the route to them.

    Args:
        template: What each InferenceService is like.
        shares: Percent of the requests by version, as :func:`divide` gives them.
    """
    made = []
    for version in shares:
        service = copy.deepcopy(template)
        predictor = service["spec"]["predictor"]
        service["metadata"]["name"] = f"{MODEL}-v{version}"
        service["metadata"].setdefault("labels", {})[VERSION_LABEL] = str(version)
        predictor.setdefault("labels", {})[VERSION_LABEL] = str(version)
        predictor["model"]["storageUri"] = f"s3://set-by-values/{MODEL}/v{version}"
        made.append(service)
    backends = [
        {"name": f"{MODEL}-v{version}-predictor", "port": 80, "weight": share} for version, share in shares.items()
    ]
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "name": MODEL,
            # Argo CD waits until the versions serve before it sends requests to them.
            "annotations": {"argocd.argoproj.io/sync-wave": "1"},
        },
        "spec": {
            "parentRefs": [{"name": "aic-gpt", "namespace": "aic-gpt-gateway", "sectionName": "serving"}],
            "hostnames": ["set-by-values"],
            # An answer that is streamed takes as long as it takes.
            "rules": [{"backendRefs": backends, "timeouts": {"request": "0s"}}],
        },
    }
    return [*made, route]


def served_version(file: Path) -> int | None:
    """The version that ``file`` divides requests from, its canary apart; None where there is no such file.

    Raises:
        InputError: If it is no file that this module wrote.
    """
    if not file.is_file():
        return None
    try:
        (route,) = (item for item in yaml.safe_load_all(file.read_text("utf-8")) if item["kind"] == "HTTPRoute")
        backends = route["spec"]["rules"][0]["backendRefs"]
        first = backends[0]  # as divide orders them: a canary may have more than half
        return int(re.fullmatch(r".+-v(\d+)-predictor", first["name"])[1])  # type: ignore[index]
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{file} is not what this command writes ({error}); take it from git") from None


def publish(version: int, models: str) -> None:
    """Copies a version's Hugging Face folder to ``models``/aic-gpt/vN; one that is there is left alone.

    Its manifest.json comes last: where there is one, the folder is whole.
    """
    target = f"{models.rstrip('/')}/{MODEL}/v{version}"
    if storage.exists(f"{target}/{MANIFEST}"):
        logger.info("%s is there already", target)
        return
    with tempfile.TemporaryDirectory(prefix="promotion-") as scratch:
        folder = registry.download_huggingface(MODEL, version, Path(scratch))
        files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
        write_json(folder / MANIFEST, {"model": MODEL, "version": version, "sha256": files})
        storage.upload_directory(folder, target)
    logger.info("%s is there", target)


def promote(models: str, overlay: Path, *, canary: str = "candidate", percent: int = 0) -> dict[int, int]:
    """Publishes the versions to be served and writes ``versions.yaml``.

    Args:
        models: Folder, or s3:// prefix, of served models.
        overlay: The enterprise overlay.
        canary: See :func:`divide`.
        percent: See :func:`divide`.

    Returns:
        Percent of the requests by version.

    Raises:
        InputError: If the model has no champion, or a version cannot be copied.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise InputError("MLFLOW_TRACKING_URI is not set; name the tracking server that keeps the registry")
    champion, candidate = (registry.find_alias(MODEL, alias) for alias in ("champion", "candidate"))
    if champion is None:
        raise InputError(f"model {MODEL!r} has no version with the alias champion; a run of the pipeline registers one")
    shares = divide(
        champion.version,
        candidate.version if candidate is not None else None,
        served=served_version(overlay / VERSIONS),
        canary=canary,
        percent=percent,
    )
    template = yaml.safe_load((overlay / TEMPLATE).read_text("utf-8"))
    for version in shares:
        publish(version, models)
    made = manifests(template, shares)
    write_text(overlay / VERSIONS, _HEAD + yaml.safe_dump_all(made, sort_keys=False))
    return shares


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="pipelines.promotion", description="Serve what MLflow's registry names.")
    parser.add_argument("--models", help="where served models lie; the bucket of values/values.env where not given")
    parser.add_argument("--canary", choices=("candidate", "champion"), default="candidate", help="what is tried out")
    parser.add_argument("--canary-percent", type=int, default=0, help="requests that it gets; 0: none")
    parser.add_argument("--overlay", type=Path, default=OVERLAY, help="the enterprise overlay")
    given = parser.parse_args(arguments)
    logs.configure()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # who waits here would rather know
    try:
        models = given.models or f"s3://{_bucket(given.overlay / 'values' / enterprise_values.FILE.name)}"
        shares = promote(models, given.overlay, canary=given.canary, percent=given.canary_percent)
    except Exception as error:
        if (reason := error if isinstance(error, InputError) else tracking.fault_of(error)) is None:
            raise
        sys.stderr.write(f"error: {reason}\n")
        return 1
    told = ", ".join(f"version {version} takes {share} %" for version, share in shares.items())
    sys.stdout.write(f"{given.overlay / VERSIONS}: {told}; commit it\n")
    return 0


def _bucket(file: Path) -> str:
    bucket = enterprise_values.read(file).get("MODELS_BUCKET", "")
    if not bucket or "example" in bucket:
        raise InputError(f"MODELS_BUCKET in {file} is not set, or still the example's; set it, or give --models")
    return bucket


if __name__ == "__main__":
    sys.exit(main())
