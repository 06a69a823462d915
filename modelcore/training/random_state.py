"""The random generators of a run: their state in a checkpoint, and back."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelcore.training.parallel import Ranks


def random_state(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """The random generators' state as plain JSON values: torch's on every rank, Python's and NumPy's on this one."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": [_encode(each) for each in ranks.gather(torch.get_rng_state())],
        "cuda": [_encode(each) for each in ranks.gather(torch.cuda.get_rng_state(device))]
        if device.type == "cuda"
        else [],
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def restore_random_state(state: Mapping[str, Any] | None, *, seed: int, device: torch.device, ranks: Ranks) -> None:
    """Sets the random generators to what a checkpoint's state holds, so that dropout goes on where it was.

    A rank that the checkpoint knows nothing of, because there were fewer, gets generators of its own: ranks that
    dropped the same activations would be less random than one alone. The first one of a fresh run is left alone.

    Args:
        state: A checkpoint's state; None for a fresh run.
        seed: The run's seed.
        device: Where this rank computes.
        ranks: The processes that train together.
    """
    saved = state["random"] if state is not None else {"torch": [], "cuda": []}
    if ranks.rank >= max(len(saved["torch"]), 1):
        step = state["step"] if state is not None else 0
        torch.manual_seed(int(np.random.SeedSequence([seed, step, ranks.rank]).generate_state(1, np.uint64)[0]))
    elif state is not None:
        torch.set_rng_state(_decode(saved["torch"][ranks.rank]))
        if device.type == "cuda" and ranks.rank < len(saved["cuda"]):
            torch.cuda.set_rng_state(_decode(saved["cuda"][ranks.rank]), device)
    if state is not None:
        version, numbers, gauss = saved["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = saved["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
