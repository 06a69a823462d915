"""Runs docker, kind, kubectl and kfp, telling each command before it is run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any

from modelcore.errors import InputError

CLUSTER = "aic-ai-poc-gpt"
CONTEXT = f"kind-{CLUSTER}"  # kind's name for it in the kubeconfig


class ProgramError(InputError):
    """A program that was run failed; the message is the end of what it printed."""


def find(name: str) -> str | None:
    """The program's path: the user's own, or else the one in the project's environment; None if there is none."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")]))


def run(*line: str, stdin: str | None = None, quiet: bool = False) -> str:
    """Runs a program to its end.

    Args:
        *line: The program's name and its arguments; they are printed, so nothing secret may be in them.
        stdin: What it reads; not printed.
        quiet: Whether to leave the command and what it prints untold, as for questions.

    Returns:
        What it printed: to standard output, and unless it is quiet to standard error too.

    Raises:
        ProgramError: If it is not there or ends with another status than 0.
    """
    program = find(line[0])
    if program is None:
        raise ProgramError(f"{line[0]} is not installed")
    if not quiet:
        _say(f"$ {' '.join(line)}\n")
    process = subprocess.Popen(  # noqa: S603 (no shell)
        [program, *line[1:]],
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with process:
        try:
            if quiet:
                out, err = process.communicate(stdin)
            else:
                out = err = _follow(process, stdin)
        except BaseException:  # interrupted, and it perhaps not
            process.kill()
            raise
    if process.returncode:
        said = (err.strip() or out.strip()).splitlines()
        raise ProgramError(f"{' '.join(line[:6])} … failed ({process.returncode}): {' | '.join(said[-5:])}")
    return out


def _follow(process: subprocess.Popen[str], stdin: str | None) -> str:
    """Tells what a program prints while it does, for some of them take many minutes; returns all of it."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError), process.stdin as file:  # it may end without reading
            file.write(stdin or "")
    out = ""
    for text in process.stdout or ():
        _say(text)
        out += text
    process.wait()
    return out


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def kubectl(*words: str, stdin: str | None = None, quiet: bool = False) -> str:
    """Runs kubectl against the cluster, whatever other cluster the user's kubeconfig points to; see :func:`run`."""
    return run(*kubectl_line(words), stdin=stdin, quiet=quiet)


def kubectl_json(*words: str) -> dict[str, Any]:
    """What kubectl prints with ``-o json``; anything else is not repeated, for it may hold a secret.

    Raises:
        ProgramError: As :func:`run`, or if it is no JSON object.
    """
    try:
        value = json.loads(kubectl(*words, "-o", "json", quiet=True))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ProgramError(f"kubectl {' '.join(words)} -o json printed no JSON object; run it by hand to see what")
    return value


def kubectl_line(words: Sequence[str]) -> list[str]:
    """The whole command of a kubectl call against the cluster."""
    return ["kubectl", "--context", CONTEXT, *words]
