"""How training scales with GPUs, gone through with CPU processes: the figures mean nothing, the code is the same."""

import importlib
import json

import pytest
import torch

from bench.benchmark import Options
from bench.gpus import BENCHMARKS
from bench.gpus.scaling import ROUNDING, _apart, counts_of
from modelcore.errors import InputError


def test_every_benchmark_is_a_module_with_a_model_of_its_own():
    modules = [importlib.import_module(f"bench.gpus.{name}") for name in BENCHMARKS]
    assert [module.SCALING.module for module in modules] == [module.__name__ for module in modules]
    assert {module.SCALING.parallel for module in modules} == {"ddp", "fsdp"}


@pytest.mark.parametrize(
    ("there", "counts"), [(2, (1, 2)), (3, (1, 2)), (4, (1, 2, 4)), (7, (1, 2, 4)), (8, (1, 2, 4, 8))]
)
def test_the_powers_of_two_are_gone_through(there, counts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert counts_of(Options()) == counts


def test_one_gpu_is_too_few(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="torch sees 1 GPU, and scaling takes two or more"):
        counts_of(Options())


def test_losses_are_compared_step_by_step_beside_what_rounding_does():
    largest, mean = _apart("x", "over 2 steps", [5.0, 4.0], [5.0, 4.5], [5.1, 4.6])
    assert (largest.value, largest.peer, largest.peer_value) == (0.5, ROUNDING, pytest.approx(0.1))
    assert (mean.value, mean.peer_value) == (0.25, pytest.approx(0.1))


@pytest.mark.slow
def test_one_two_and_four_processes_have_the_losses_of_one_and_half_of_them_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scaling = importlib.import_module("bench.gpus.tinyllama_scaling").SCALING
    rows = list(scaling.rows(Options(small=True, folder=tmp_path, settings={"precision": "fp32"})))
    assert {row.benchmark for row in rows} == {"tinyllama_scaling"}
    efficiency = [row for row in rows if row.metric == "throughput" and row.peer]
    assert [row.peer for row in efficiency] == ["2 x one GPU", "4 x one GPU"]
    curves = json.loads((tmp_path / "tinyllama_scaling.curves.json").read_text())
    assert curves.keys() == {"1 GPU", "2 GPUs", "4 GPUs", ROUNDING, "resumed on 2 GPUs"}
    for name in ("2 GPUs", "4 GPUs"):
        assert curves[name] == pytest.approx(curves["1 GPU"], abs=1e-5)
    assert curves["resumed on 2 GPUs"] == pytest.approx(curves["1 GPU"][3:], abs=1e-5)
    assert all(row.value < 1e-5 for row in rows if row.unit == "nats")
