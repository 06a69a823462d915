"""Whether a kernel can be built and run at all: Triton needs a C compiler, and a driver that knows its code."""

from __future__ import annotations

import functools
import logging

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

log = logging.getLogger(__name__)


@triton.jit
def _answer(y):
    tl.store(y, 1)


@functools.cache
def works(device: torch.device) -> bool:
    """Runs a kernel of one line on the device; where that fails, the log says why, once."""
    if not isinstance(_answer, JITFunction):  # TRITON_INTERPRET is set
        return False
    try:
        with torch.cuda.device(device):
            y = torch.zeros(1, dtype=torch.int32, device=device)
            _answer[(1,)](y)
            return bool(y.item() == 1)
    except Exception as error:  # whatever it is: the ordinary way needs no kernels
        log.info("Triton's kernels are not used: %s", str(error).strip().partition("\n")[0])
        return False
