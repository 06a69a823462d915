import time

import pytest
import torch

from modelcore.training import peak


def test_a_cpus_peak_is_measured_quickly():
    start = time.perf_counter()
    flops = peak.peak_flops(torch.device("cpu"))
    assert time.perf_counter() - start < 2.0
    assert 1e8 < flops < 1e15


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
