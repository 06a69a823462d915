"""The machine that a benchmark ran on: a name for its file, and what one must know to judge the figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from modelcore.errors import InputError

Kind = Literal["cpu", "gpu", "gpus"]

PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "numpy")


@dataclass(frozen=True)
class Machine:
    """What a benchmark ran on.

    Attributes:
        name: For file names, such as ``cpu-amd-epyc-2-cores``; the same for machines of the same make.
        facts: Processor, memory and versions, by what they are.
    """

    name: str
    facts: dict[str, str]


def this_machine(kind: Kind) -> Machine:
    """The machine this runs on.

    Args:
        kind: Whether its CPU, its GPU or all its GPUs together are what is measured.

    Raises:
        InputError: If a GPU is asked for and there is none.
    """
    from modelcore.machine import available_cores, memory_limit

    cores = f"{available_cores()} cores"
    facts = {"processor": f"{_processor()}, {cores}", "memory": f"{memory_limit() / 2**30:.0f} GiB"}
    name = f"cpu {_processor()} {cores}"
    if kind != "cpu":
        found = _gpus()
        gpu, driver = found[0]
        several = kind == "gpus"
        facts |= {"gpus" if several else "gpu": f"{len(found)} x {gpu}" if several else gpu, "driver": driver}
        name = f"{len(found)} gpus {gpu}" if several else f"gpu {gpu}"
    facts |= {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "missing"
    return Machine(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"), facts)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def _gpus() -> list[tuple[str, str]]:
    """Name and driver of each GPU that torch would use, asked without making a context on it."""
    line = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        line.append(f"--id={visible}")
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        raise InputError(
            "nvidia-smi shows no GPU; the benchmarks on a GPU need one, `make bench` runs without"
        ) from None
    return [(name, driver) for name, _, driver in (each.partition(", ") for each in done.stdout.splitlines())]
