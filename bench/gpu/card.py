"""What the card itself can do: a product of large matrices and a copy within its memory, beside its datasheet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import cache

import torch

from bench.benchmark import Options, main
from bench.gpu.work import device_of, synchronize
from bench.measure import timed
from bench.row import Row
from modelcore.training.peak import peak_flops

# Bytes a second of the device's memory from NVIDIA's datasheets, by a piece of the name; the first that fits counts.
_DATASHEETS = {
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
}


def rows(options: Options) -> Iterator[Row]:
    """The two peaks."""
    device = device_of(options)
    size = 256 if options.small else 8192
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn_like(a)
    product = 2 * size**3 / _median(lambda: a @ b, device)
    datasheet = ("datasheet", peak_flops(device) / 1e12) if device.type == "cuda" else ("", None)
    yield Row(f"card product of {size} x {size} in bf16", "speed", product / 1e12, "TFLOP/s", *datasheet)
    copied = _copy(device, 1 << 20 if options.small else 1 << 31)
    datasheet = ("datasheet", bandwidth(device) / 1e9) if device.type == "cuda" else ("", None)
    yield Row("card copy, bytes read and written", "speed", copied / 1e9, "GB/s", *datasheet)


@cache
def bandwidth(device: torch.device) -> float:
    """Bytes a second that the device's memory gives at best: the datasheet's, or measured for one not known here."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = [figure for piece, figure in _DATASHEETS.items() if piece in name]
    return known[0] if known else _copy(device, 1 << 26)


def _copy(device: torch.device, size: int) -> float:
    """Bytes a second, read and written, of copying ``size`` bytes."""
    source = torch.zeros(size, device=device, dtype=torch.uint8)
    copy = torch.empty_like(source)
    return 2 * size / _median(lambda: copy.copy_(source), device)


def _median(work: Callable[[], object], device: torch.device) -> float:
    run = timed(work, lambda: synchronize(device))
    return statistics.median([run() for _ in range(3 + 10)][3:])


if __name__ == "__main__":
    main(rows)
