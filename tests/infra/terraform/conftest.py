"""Stand-ins for the programs that the machine's scripts call."""

import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.settings import TERRAFORM

FILES = TERRAFORM / "modules" / "compute" / "files"


@dataclass
class Machine:
    """A folder of stand-ins that note how they were called, and the scripts run with nothing else on their path.

    Args:
        folder: Where all this lies.
        environment: What the scripts find in their environment.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        (self.folder / "bin").mkdir()
        (self.folder / "calls").touch()

    def has(self, name, does=""):
        """Puts a stand-in there: it notes its arguments, then does what is given, in bash."""
        note = f'printf "%s\\n" "${{0##*/}}${{*:+ $*}}" >>{shlex.quote(str(self.folder / "calls"))}'
        (self.folder / "bin" / name).write_text(f"#!/bin/bash\n{note}\n{does}\n")
        (self.folder / "bin" / name).chmod(0o755)

    def run(self, script, *arguments):
        """Runs one of the scripts; returns what became of it."""
        return subprocess.run(
            ["/bin/bash", str(FILES / script), *arguments],
            env={"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", **self.environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def calls(self):
        """The stand-ins' calls so far."""
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)
