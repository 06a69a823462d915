"""Programmatic dependent launch: a kernel starts while the one before it still runs.

On GPUs from Hopper on, a kernel may be launched once every program of the kernel before has said so, long before that
one's results are there (CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"). What needs no
result of another kernel, reading weights above all, then hides the time that a launch takes. Every kernel here follows
one rule: before it touches what another kernel writes or reads, it calls :func:`wait`.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def is_supported(device: torch.device) -> bool:
    """Whether the device knows it."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def let_next_start(early: tl.constexpr):
    """Lets the next kernel be launched once every program has come here."""
    if early:
        gdc_launch_dependents()


@triton.jit
def wait(early: tl.constexpr):
    """Waits until all kernels before have ended and their results can be read."""
    if early:
        gdc_wait()
