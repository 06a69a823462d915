"""A tiny model and a tiny text, small enough that a training run takes a fraction of a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from modelcore.data.loader import TrainingBatches, WindowSampler
from modelcore.gptx import GPT, GPTConfig
from modelcore.training import TrainingSettings


@dataclass
class TokensInMemory:
    """A token split that lies in memory."""

    tokens: npt.NDArray[np.int64]
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        return self.tokens[start : start + length].copy()

    def prefetch(self, start: int, length: int) -> None:
        pass


@pytest.fixture
def split() -> TokensInMemory:
    """A text with something to learn: each token is mostly the one before plus one."""
    generator = np.random.default_rng(0)
    steps = np.where(generator.random(4000) < 0.9, 1, generator.integers(0, 61, 4000))
    return TokensInMemory(np.cumsum(steps) % 61, n_bytes=12_000)


@pytest.fixture
def config() -> GPTConfig:
    return GPTConfig(
        vocab_size=61,
        context_length=16,
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        d_ff=48,
        tie_embeddings=True,
        dropout=0.1,
    )


@pytest.fixture
def make_model(config: GPTConfig) -> Any:
    def make(**changes: Any) -> GPT:
        torch.manual_seed(7)
        return GPT(GPTConfig(**(config.to_dict() | changes)))

    return make


@pytest.fixture
def make_settings() -> Any:
    def make(**changes: Any) -> TrainingSettings:
        fields = {
            "steps": 24,
            "batch_size": 8,
            "sequence_length": 16,
            "learning_rate": 3e-3,
            "precision": "fp32",  # some CPUs would round to bf16, and what is compared here is compared closely
            "warmup_steps": 2,
            "log_every": 4,
        }
        return TrainingSettings(**(fields | changes))

    return make


@pytest.fixture
def make_batches(split: TokensInMemory) -> Any:
    def make(settings: TrainingSettings) -> TrainingBatches:
        sampler = WindowSampler(split.n_tokens, settings.sequence_length, settings.seed)
        return TrainingBatches(split, sampler, settings.batch_size)  # type: ignore[arg-type]

    return make
