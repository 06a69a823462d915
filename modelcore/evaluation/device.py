"""Where models are evaluated."""

from __future__ import annotations

import torch


def evaluation_device() -> torch.device:
    """A GPU if there is one, else the CPU; figures of the two differ in their last digits."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
