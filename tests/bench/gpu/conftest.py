"""Each test goes through the motions on the CPU; the figures mean nothing, the code is what runs on a GPU."""

import sys

import pytest
import torch

from bench.benchmark import Options
from bench.gpu import work


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(work.torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def own_settings():
    """What a benchmark sets for its whole process is the next test's no more."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def options():
    return Options(small=True)


@pytest.fixture
def own_modules(monkeypatch):
    """Forgets afterwards what a peer's folder gave: its modules have names such as ``model``."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("model", "generate", "quantize", "tokenizer", "litgpt"):
            del sys.modules[name]
