"""The rendered manifests, and what renders them."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def kubectl():
    return shutil.which("kubectl", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))


@pytest.fixture(scope="session")
def free_tier(tmp_path_factory):
    """The overlay as `make manifests` renders and checks it, parsed."""
    folder = tmp_path_factory.mktemp("manifests")
    line = [sys.executable, REPOSITORY / "scripts" / "render-manifests.py", folder]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all((folder / "free-tier.yaml").read_text()))
