"""The rendered manifests, and what renders them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def overlays(tmp_path_factory):
    """The overlays as `make manifests` renders and checks them, parsed, by name."""
    folder = tmp_path_factory.mktemp("manifests")
    line = [sys.executable, REPOSITORY / "scripts" / "render-manifests.py", folder]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {file.stem: list(yaml.safe_load_all(file.read_text())) for file in folder.glob("*.yaml")}


@pytest.fixture(scope="session")
def free_tier(overlays):
    return overlays["free-tier"]


@pytest.fixture(scope="session")
def enterprise(overlays):
    return overlays["enterprise"]


@pytest.fixture(scope="session")
def folder(repository):
    return repository / "manifests" / "overlays" / "enterprise"


@pytest.fixture(scope="session")
def concerns(folder, kubectl):
    """Each folder of the overlay, rendered alone as Argo CD renders it, by name."""
    names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    found = {}
    for name in names:
        line = [kubectl, "kustomize", folder / name]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[name] = list(yaml.safe_load_all(done.stdout))
    return found
