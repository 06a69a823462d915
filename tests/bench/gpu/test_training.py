"""Training is timed with the real loop and the peers' real models, of one shape and on the same tokens."""

import dataclasses
import importlib

import pytest
import torch
from torch import nn

from bench.benchmark import Options
from bench.gpu import hugging_face, training
from bench.gpu.training import RandomTokens, time_ours, time_peer
from bench.gpu.work import GPT2, NANOGPT, TINYLLAMA, Work, build, device_of
from modelcore.errors import InputError

CPU = torch.device("cpu")

NANOGPT_MODEL = """
import torch
from dataclasses import dataclass
from torch import nn
@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool
class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config == GPTConfig(64, 500, 2, 4, 64, 0.0, False)
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
    def forward(self, tokens, targets):
        logits = self.embedding(tokens) @ self.embedding.weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""
LITGPT_CONFIG = """
class Config:
    def __init__(self, **fields):
        vars(self).update(fields)
"""
LITGPT_MODEL = """
from torch import nn
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import qkv_reassemble
class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        shape = (config.n_layer, config.n_head, config.n_query_groups, config.intermediate_size, config.block_size)
        assert shape == (2, 4, 2, 256, 64)
        self.embedding = nn.Embedding(config.padded_vocab_size, config.n_embd)
    def forward(self, tokens):
        return self.embedding(tokens) @ self.embedding.weight.T
"""


@pytest.fixture
def peers(tmp_path, own_modules):
    """Folders with what nanoGPT and litgpt have, as far as it is asked for, and a small model each."""
    nanogpt, litgpt = tmp_path / "nanogpt", tmp_path / "litgpt"
    (litgpt / "litgpt").mkdir(parents=True)
    nanogpt.mkdir()
    (nanogpt / "model.py").write_text(NANOGPT_MODEL)
    (litgpt / "litgpt" / "__init__.py").write_text("import no_such_package")
    (litgpt / "litgpt" / "config.py").write_text(LITGPT_CONFIG)
    (litgpt / "litgpt" / "model.py").write_text(LITGPT_MODEL)
    return {"nanogpt": nanogpt, "litgpt": litgpt}


@pytest.mark.parametrize("name", ["gpt2_training", "gpt2_small_training", "tinyllama_training", "lora_tuning"])
def test_every_contender_gives_figures(peers, name):
    contest = importlib.import_module(f"bench.gpu.{name}").CONTEST
    assert contest.module == f"bench.gpu.{name}"
    for part, measure in contest.parts.items():
        figures = measure(Options(small=True, peers=peers))
        expected = {"throughput"} if name == "lora_tuning" else {"throughput", "MFU"}
        assert figures.keys() == expected, part
        assert min(figures.values()) > 0


@pytest.mark.parametrize("work", [GPT2, NANOGPT, TINYLLAMA])
def test_the_full_sizes_are_the_published_ones(work):
    config = work.config
    published = {GPT2: 124_439_808, NANOGPT: 124_373_760, TINYLLAMA: 1_100_048_384}
    assert config.num_params() == published[work]
    assert work.at(Options()) == work
    assert work.tokens == {GPT2: 32_768, NANOGPT: 32_768, TINYLLAMA: 16_384}[work]


@pytest.mark.parametrize("work", [GPT2, TINYLLAMA])
def test_hugging_faces_model_has_our_shape(work, options):
    config = work.at(options).config
    theirs = hugging_face.build(config, CPU)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == config.num_params()
    assert theirs.config._attn_implementation == "sdpa"


def test_without_a_gpu_only_the_motions_are_gone_through(options):
    assert device_of(options) == CPU
    with pytest.raises(InputError, match="torch sees no GPU; --small"):
        device_of(Options())


def test_ours_is_trained_with_what_the_user_sets(options, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "train", lambda model, batches, settings, **rest: seen.append((model, settings)))
    monkeypatch.setattr(training, "_figures", lambda *_: {})
    work = NANOGPT.at(options)
    time_ours(build(work.config, CPU), work, dataclasses.replace(options, settings={"micro_batch_size": 2}))
    model, settings = seen[0]
    assert (settings.micro_batch_size, settings.steps, settings.log_every) == (2, 3, 1)
    assert model.head.weight.shape[0] == 512  # 500 tokens, padded


def test_a_peer_is_trained_on_every_step_with_the_same_batches(options):
    work = dataclasses.replace(NANOGPT.at(options), batch_size=2)
    model, seen = nn.Embedding(500, 500), []

    def loss(inputs, targets):
        seen.append((inputs, targets))
        assert torch.is_autocast_enabled("cpu")
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    before = model.weight.detach().clone()
    time_peer(loss, model.parameters(), work, options)
    source = RandomTokens(work)
    assert len(seen) == 3
    for step, batch in enumerate(seen):
        assert all(torch.equal(*pair) for pair in zip(batch, source.batch(step), strict=True))
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_random_tokens_are_the_same_for_everyone_and_targets_follow_inputs():
    work = Work(dataclasses.replace(NANOGPT.config, vocab_size=500), batch_size=3, sequence_length=10)
    inputs, targets = RandomTokens(work).batch(9)
    assert torch.equal(inputs, RandomTokens(work).batch(1)[0])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.shape == (3, 10)
    assert not torch.equal(inputs, RandomTokens(work).batch(0)[0])


def test_the_first_window_does_not_count():
    work = TINYLLAMA.at(Options(small=True))
    figures = training._figures(work, [2.0, 4.0, 3.0], CPU)
    assert figures["throughput"] == 3.0
    flops = work.config.flops_per_token(work.sequence_length)
    assert figures["MFU"] == pytest.approx(3.0 * flops / training.peak_flops(CPU))
