"""The container engine that builds and runs images on this machine: docker or podman."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

from modelcore.errors import InputError, first_line

KNOWN = ("docker", "podman")


class Engine:
    """A container engine's command line.

    Args:
        name: The program; empty: the first of :data:`KNOWN` that is installed and answers.

    Raises:
        InputError: If there is none, or it does not answer.
    """

    def __init__(self, name: str = "") -> None:
        installed = [program for program in ([name] if name else KNOWN) if shutil.which(program)]
        if not installed:
            raise InputError(f"{name or ' or '.join(KNOWN)} is not installed here; install Docker or Podman")
        complaints = {program: _complaint(program) for program in installed}
        answering = [program for program, complaint in complaints.items() if complaint is None]
        if not answering:
            said = "; ".join(f"{program}: {complaint}" for program, complaint in complaints.items())
            raise InputError(f"no container engine answers ({said}); is it started, and may you use it?")
        self.program = answering[0]

    @property
    def is_podman(self) -> bool:
        """Whether it is Podman, whose images forget their health check unless Docker's format is asked for."""
        return self.program.rpartition("/")[2] == "podman"

    def stream(self, *words: str) -> None:
        """Runs a command whose output goes where this program's goes.

        Raises:
            InputError: If it fails.
        """
        if subprocess.run([self.program, *words], check=False).returncode != 0:  # noqa: S603
            raise InputError(f"{self.program} {words[0]} failed; what it said stands above")

    def ask(self, *words: str, text: str = "") -> str:
        """Runs a command, with ``text`` as its input; returns its output.

        Raises:
            InputError: If it fails.
        """
        done = subprocess.run([self.program, *words], input=text, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise InputError(
                f"{self.program} {' '.join(words[:2])} failed: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout

    def inspect(self, image: str) -> dict[str, Any] | None:
        """What the engine knows of an image; None if it has none of that name."""
        words = [self.program, "image", "inspect", image]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            return None
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found


def _complaint(program: str) -> str | None:
    """Why the engine cannot be used; None if it can."""
    words = [program, "info"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode == 0:
        return None
    return first_line(RuntimeError(done.stderr.strip() or f"it ends with status {done.returncode}"))
