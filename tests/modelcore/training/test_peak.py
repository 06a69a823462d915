from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch

from modelcore.training import peak


def test_a_cpus_peak_is_that_of_the_fastest_of_a_few_products_measured_once(monkeypatch):
    lasted = [0.5, 0.25, 0.125, 0.5, 0.5, 0.5, 0.5, 0.5]  # seconds of each product; nothing passes between them
    ends = list(accumulate(lasted))
    clock = iter([time for pair in zip([0.0, *ends], ends, strict=False) for time in pair])
    peak._measure.cache_clear()
    monkeypatch.setattr(peak, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert peak.peak_flops(torch.device("cpu")) == 2 * 768**3 / 0.125
    assert peak.peak_flops(torch.device("cpu")) == 2 * 768**3 / 0.125  # the clock has run out
    peak._measure.cache_clear()


def test_a_cpus_peak_is_that_of_a_computer():
    assert 1e8 < peak.peak_flops(torch.device("cpu")) < 1e15


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
    ],
)
def test_a_gpus_peak_is_its_datasheets(monkeypatch, name, flops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak.peak_flops(torch.device("cuda")) == flops
