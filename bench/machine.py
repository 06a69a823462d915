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

Kind = Literal["cpu", "gpu"]

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
        kind: Whether its CPU or its GPU is what is measured.

    Raises:
        InputError: If a GPU is asked for and there is none.
    """
    from modelcore.machine import available_cores, memory_limit

    cores = f"{available_cores()} cores"
    facts = {"processor": f"{_processor()}, {cores}", "memory": f"{memory_limit() / 2**30:.0f} GiB"}
    name = f"cpu {_processor()} {cores}"
    if kind == "gpu":
        gpu, driver = _first_gpu()
        facts |= {"gpu": gpu, "driver": driver}
        name = f"gpu {gpu}"
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


def _first_gpu() -> tuple[str, str]:
    """Name and driver of the GPU, asked without making a context on it."""
    # With several GPUs the first one that CUDA_VISIBLE_DEVICES lets through is the one that torch uses.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    line = ["nvidia-smi", f"--id={visible}", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        raise InputError(
            "nvidia-smi shows no GPU; the benchmarks on a GPU need one, `make bench` runs without"
        ) from None
    name, driver = done.stdout.splitlines()[0].split(", ")
    return name, driver
