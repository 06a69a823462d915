"""Renders each overlay to one file and checks every manifest in it: scripts/render-manifests.py [FOLDER].

What is checked is what an API server of Kubernetes 1.37 would refuse under strict validation of fields: missing,
misspelt and mistyped ones. Custom resources, whose schemas their operators bring, are counted and not checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

VERSION = "1.37"
OVERLAYS = Path(__file__).parents[1] / "manifests" / "overlays"


def render(folder: Path) -> str:
    """The manifests that ``kubectl kustomize`` makes of a folder, as YAML."""
    # the environment's own first: which kustomize it is decides what comes out
    kubectl = shutil.which("kubectl", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if kubectl is None:
        sys.exit("error: there is no kubectl; install it (https://kubernetes.io/docs/tasks/tools) or run make setup")
    line = [kubectl, "kustomize", folder]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603 (a folder of this repository)
    if done.returncode:
        sys.exit(f"error: {folder} cannot be rendered: {done.stderr.strip()}")
    return done.stdout


def faults(manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a manifest of Kubernetes' own kinds, one line each.

    Raises:
        SchemaNotFoundError: If it is of another kind.
    """
    try:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"


def check(text: str) -> tuple[int, list[str], list[str]]:
    """How many manifests there are, the kinds of those that have no schema here, and all faults found."""
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    found, unchecked = [], []
    for manifest in manifests:
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        try:
            found += [f"{name}: {fault}" for fault in faults(manifest)]
        except kubernetes_validate.SchemaNotFoundError:
            unchecked.append(manifest["kind"])
    return len(manifests), unchecked, found


def main() -> int:
    """Renders and checks all overlays; 1 if a manifest is at fault."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/manifests")
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for overlay in sorted(path.parent for path in OVERLAYS.glob("*/kustomization.yaml")):
        file = out / f"{overlay.name}.yaml"
        text = render(overlay)
        file.write_text(text, encoding="utf-8")
        number, unchecked, found = check(text)
        for fault in found:
            print(f"{file}: {fault}", file=sys.stderr)
        kinds = f" ({', '.join(sorted(set(unchecked)))})" if unchecked else ""
        print(
            f"{file}: {number} manifests, {len(found)} faults, {len(unchecked)} of kinds without a schema here{kinds}"
        )
        failed |= bool(found) or not number
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
