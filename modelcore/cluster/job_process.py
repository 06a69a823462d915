"""What each process of a job runs: ``torchrun -m modelcore.cluster.job_process STAGE ARGUMENTS``.

``ARGUMENTS`` are the stage's, as JSON. Why a process fails is said in its log, and in the pod's status, where whoever
follows the job finds it: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from modelcore import launch, logs
from modelcore.errors import ConversionError, InputError

STAGES = ("pretrain", "finetune_lora", "validate_data", "tokenize_corpus")
TERMINATION_LOG = Path("/dev/termination-log")  # Kubernetes' default, 4,096 bytes


def main(words: list[str]) -> int:
    """Runs a stage; returns the exit status."""
    stage, arguments = words
    if stage not in STAGES:
        raise ValueError(f"{stage} is no stage that runs as a job; these are: {', '.join(STAGES)}")
    logs.configure()
    try:
        getattr(importlib.import_module(f"modelcore.stages.{stage}"), stage)(**json.loads(arguments))
    except (InputError, ConversionError) as error:
        if launch.rank() == 0:  # the others say the same
            sys.stderr.write(f"error: {error}\n")
        _leave_word(str(error))
        return 1
    except Exception as error:
        _leave_word(f"rank {launch.rank()}: {type(error).__name__}: {error}")
        raise
    return 0


def _leave_word(message: str) -> None:
    """Leaves the first failure of this pod in its status, where there is a place for it."""
    place = Path(os.environ.get("MODELCORE_TERMINATION_LOG", TERMINATION_LOG))
    try:
        if place.is_file() and not place.stat().st_size:
            place.write_text(message[:2000], encoding="utf-8")
    except OSError:  # the log says it too
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
