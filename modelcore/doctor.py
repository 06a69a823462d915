"""``modelcore doctor``: what is installed, what is missing, and what this machine can run."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

from modelcore.machine import available_cores, memory_limit

# Distribution, the extra of this project that brings it, and what it is needed for.
PACKAGES = (
    ("torch", "torch", "the model"),
    ("safetensors", "", "checkpoints"),
    ("sentencepiece", "tokenizers", "tokenizers, generate"),
    ("tokenizers", "tokenizers", "export of tokenizers"),
    ("great-expectations", "data", "validate-data"),
    ("pandas", "data", "validate-data"),
    ("pyarrow", "data", "reading and writing parquet"),
    ("boto3", "storage", "s3:// paths"),
    ("transformers", "convert", "checking exports, register"),
    ("peft", "convert", "checking adapters, convert --to peft"),
    ("gguf", "convert", "export to GGUF"),
    ("lm-eval", "evaluation", "evaluate"),
    ("mlflow", "tracking", "tracking, register"),
    ("matplotlib", "tracking", "pictures"),
    ("kfp", "pipelines", "make pipeline"),
)

# Bytes a parameter needs while it is trained with AdamW in fp32: weight, gradient, two moments; half as much again
# is set aside for activations and the libraries themselves.
BYTES_PER_TRAINED_PARAMETER = 16


def report() -> tuple[str, bool]:
    """The report, and whether what every command needs is there."""
    lines = [f"python            {platform.python_version()} ({sys.executable})"]
    healthy = sys.version_info >= (3, 11)
    if not healthy:
        lines.append("                  too old: 3.11 or newer is needed")
    for name, extra, purpose in PACKAGES:
        try:
            lines.append(f"{name:<20}{version(name)}")
        except PackageNotFoundError:
            healthy = healthy and extra not in ("", "torch")
            mend = f"pip install -c constraints.txt -e '.[{extra}]'" if extra else "pip install -c constraints.txt -e ."
            lines.append(f"{name:<20}missing: needed for {purpose}; {mend}")
    lines += _machine()
    return "\n".join(lines) + "\n", healthy


def _machine() -> list[str]:
    memory = memory_limit()
    lines = [
        f"cores             {available_cores()}",
        f"memory            {memory / 2**30:.1f} GiB",
        f"disk free here    {shutil.disk_usage('.').free / 2**30:.1f} GiB",
    ]
    try:
        import torch
    except ModuleNotFoundError:
        return lines
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            lines.append(f"gpu {index}             {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        lines.append("gpu               none")
    from modelcore.models import PRESETS

    lines.append("pretraining       (parameters, memory needed: 16 bytes each and half as much again, and 400 MiB)")
    for name, config in PRESETS.items():
        parameters = config.num_params()
        needed = parameters * BYTES_PER_TRAINED_PARAMETER * 1.5 + 400 * 2**20
        verdict = "fits" if needed <= memory else "does not fit"
        lines.append(f"  {name:<16}{parameters / 1e6:8.1f} M  {needed / 2**30:6.1f} GiB  {verdict}")
    return lines
