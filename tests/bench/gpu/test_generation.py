"""Generation is timed as whole calls, and set against what the memory's bandwidth allows."""

import importlib

import pytest
import torch

from bench.benchmark import Options
from bench.gpu import card, generation, hugging_face
from bench.gpu.generation import Request, figures, weight_bytes
from bench.gpu.work import TINYLLAMA, build

CPU = torch.device("cpu")

GPTFAST_MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
@dataclass
class ModelArgs:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    dim: int
    intermediate_size: int
    n_local_heads: int
    norm_eps: float
class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config == ModelArgs(64, 500, 2, 4, 64, 256, 2, 1e-5)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
"""
GPTFAST_GENERATE = """
import torch
from model import Transformer
from tokenizer import get_tokenizer
def prefill(model, tokens, positions, temperature, top_k):
    assert tokens.shape == (1, 16) and positions.tolist() == list(range(16)) and not torch.is_grad_enabled()
    return model.cache[:1]
def generate(model, prompt, new_tokens, batch_size, *, interactive, draft_model, temperature, top_k):
    assert (batch_size, temperature, top_k, new_tokens) == (1, 0.8, 200, 8)
    model.cache = torch.ones(1000)
"""
GPTFAST_QUANTIZE = """
import torch
from torch import nn
class Int8(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.register_buffer("weight", torch.empty(linear.weight.shape, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(len(linear.weight), dtype=torch.bfloat16))
class WeightOnlyInt8QuantHandler:
    def __init__(self, model):
        self.model = model
    def convert_for_runtime(self):
        self.model.output = Int8(self.model.output)
        return self.model
"""


@pytest.fixture
def peers(tmp_path, own_modules):
    """A folder with what gpt-fast has, as far as it is asked for."""
    for name, text in (("model", GPTFAST_MODEL), ("generate", GPTFAST_GENERATE), ("quantize", GPTFAST_QUANTIZE)):
        (tmp_path / f"{name}.py").write_text(text)
    return {"gptfast": tmp_path}


@pytest.mark.parametrize("name", ["bf16_decoding", "int8_decoding", "batched_decoding"])
def test_every_contender_gives_figures(peers, name):
    contest = importlib.import_module(f"bench.gpu.{name}").CONTEST
    assert contest.module == f"bench.gpu.{name}"
    for part, measure in contest.parts.items():
        taken = measure(Options(small=True, peers=peers))
        expected = {"throughput", "share of the bandwidth roof"}
        expected |= {"first token"} if name != "batched_decoding" else set()
        assert taken.keys() == expected, part
        assert min(taken.values()) > 0


def test_the_figures_are_those_of_the_calls(options, monkeypatch):
    seconds = iter([9.0, 2.0, 9.0, 0.5])  # each call's first run does not count
    monkeypatch.setattr(generation, "timed", lambda work, wait: lambda: next(seconds))
    monkeypatch.setattr(generation, "bandwidth", lambda device: 1000.0)
    request = Request(batch_size=4, new_tokens=10)
    assert figures(lambda: None, request, 40, options, lambda: None) == {
        "throughput": 20.0,  # 4 texts of 10 tokens in 2 seconds
        "share of the bandwidth roof": 0.2,  # 5 steps a second of 40 bytes, of 1,000 bytes a second
        "first token": 500.0,
    }


def test_a_step_reads_all_weights_but_the_embedding(options):
    config = TINYLLAMA.at(options).config
    ours, theirs = build(config, CPU), hugging_face.build(config, CPU)
    expected = 4 * (config.num_params() - config.vocab_size * config.d_model)
    assert weight_bytes(ours, "embedding.weight") == expected
    assert weight_bytes(theirs, "model.embed_tokens.weight") == expected


def test_everyone_gets_the_same_prompts(options):
    request = Request(batch_size=2, new_tokens=4)
    assert request.prompts(options) == request.prompts(options)
    assert [len(prompt) for prompt in request.prompts(options)] == [16, 16]


def test_the_cards_peaks_are_rows(options):
    product, copy = card.rows(options)
    assert (product.metric, product.unit, copy.unit) == ("speed", "TFLOP/s", "GB/s")


@pytest.mark.parametrize(
    ("name", "expected"), [("NVIDIA H100 80GB HBM3", 3.35e12), ("NVIDIA H100 PCIe", 2.0e12), ("NVIDIA H200", 4.8e12)]
)
def test_a_known_cards_bandwidth_is_its_datasheets(monkeypatch, name, expected):
    monkeypatch.setattr(card.torch.cuda, "get_device_name", lambda device: name)
    card.bandwidth.cache_clear()
    assert card.bandwidth(torch.device("cuda")) == expected
    card.bandwidth.cache_clear()
