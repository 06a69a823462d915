"""Triton kernels for GPUs, each beside the torch code that it stands for where there is no Triton."""

from __future__ import annotations

import importlib.util

import torch


def runs_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run there."""
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):  # before Ampere, without bfloat16
        return False
    from modelcore.kernels.probe import works

    return works(device)
