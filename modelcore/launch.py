"""How this process was launched: alone, or by torchrun as one of several that train together.

torchrun (and whatever keeps its convention, such as Kubeflow's trainer) tells each process its place in the
environment: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables.
"""

from __future__ import annotations

import os


def world_size() -> int:
    """Number of processes that were launched together; 1 for one alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """This process's number among them, from 0. Number 0 speaks for all: it logs, tracks and writes."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """Its number among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def restart() -> int:
    """How often torchrun has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
