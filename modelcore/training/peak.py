"""Peak arithmetic speed of a device: what model FLOP utilization (MFU) is a fraction of."""

from __future__ import annotations

import time
from functools import cache

import torch

# Dense bf16 FLOP/s from NVIDIA's datasheets (half of what is printed "with sparsity"), by a piece of the device's
# name; the first that fits counts. The T4 has no bf16: fp16.
_DATASHEETS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device) -> float:
    """Floating-point operations a second that ``device`` can do at best.

    A GPU's figure is its datasheet's, for dense bf16. A CPU's, and that of a GPU not in the table, is measured, once
    a process: the best of a few matrix products, fp32 on the CPU with as many threads as torch uses. That takes about
    a tenth of a second.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for piece, flops in _DATASHEETS.items():
            if piece in name:
                return flops
    return _measure(device)


@cache
def _measure(device: torch.device) -> float:
    on_gpu = device.type != "cpu"
    size = 4096 if on_gpu else 768
    a = torch.ones(size, size, dtype=torch.bfloat16 if on_gpu else torch.float32, device=device)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
