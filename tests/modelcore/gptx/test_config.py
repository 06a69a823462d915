"""Configurations check themselves, survive JSON, and count parameters and operations exactly."""

import dataclasses
import itertools
import json
import math

import pytest
import torch

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig, RopeScaling
from modelcore.models import get_config

BASE = GPTConfig(vocab_size=37, context_length=12, n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, d_ff=40)


def parameters(config: GPTConfig) -> int:
    """Parameters of the real model, built without memory for them; a tied head is one tensor."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(config).parameters())


@pytest.mark.parametrize("positions", ["learned", "rope", "alibi"])
@pytest.mark.parametrize("feedforward", ["gelu", "gelu_tanh", "swiglu"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_the_count_of_parameters_is_that_of_the_model(positions, feedforward, norm):
    for attention_bias, feedforward_bias, norm_bias, tied in itertools.product([False, True], repeat=4):
        config = dataclasses.replace(
            BASE,
            positions=positions,
            feedforward=feedforward,
            norm=norm,
            attention_bias=attention_bias,
            feedforward_bias=feedforward_bias,
            norm_bias=norm_bias,
            tie_embeddings=tied,
            embedding_norm=tied != norm_bias,
        )
        assert config.num_params() == parameters(config)


@pytest.mark.parametrize(("name", "count"), [("gpt2-small", 124_439_808), ("tinyllama-1.1b", 1_100_048_384)])
def test_the_named_models_have_the_published_size(name, count):
    config = get_config(name)
    assert config.num_params() == parameters(config) == count


def test_operations_follow_the_stated_convention():
    """6 N + 12 L d T; N without the input embedding and the table of positions."""
    body = GPT(BASE)
    multiplied = sum(p.numel() for name, p in body.named_parameters() if name != "embedding.weight")
    assert BASE.flops_per_token(12) == 6 * multiplied + 12 * 2 * 24 * 12
    tied = dataclasses.replace(BASE, tie_embeddings=True, positions="learned")
    assert tied.flops_per_token(12) == BASE.flops_per_token(12)


def test_a_sliding_window_bounds_the_operations_of_attention():
    windowed = dataclasses.replace(BASE, sliding_window=5)
    assert windowed.num_params() == BASE.num_params()
    assert windowed.flops_per_token(12) == BASE.flops_per_token(5)
    assert windowed.flops_per_token(3) == BASE.flops_per_token(3)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "alibi", "dropout": 0.1, "rope_theta": 5e5, "embedding_norm": True},
        {"sliding_window": 4},
        {"rope_scaling": RopeScaling("yarn", 4.0, 3, attention_factor=1.2, truncate=False)},
        {"rope_scaling": RopeScaling("dynamic", 4.0, 3)},
    ],
)
def test_a_configuration_survives_json(changes):
    config = dataclasses.replace(BASE, **changes)
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_configuration_without_the_later_fields_is_described_as_it_always_was():
    assert BASE.to_dict() == {
        "vocab_size": 37, "context_length": 12, "n_layers": 2, "d_model": 24, "n_heads": 6, "n_kv_heads": 3,
        "d_ff": 40, "positions": "rope", "norm": "rmsnorm", "norm_eps": 1e-5, "feedforward": "swiglu",
        "attention_bias": False, "feedforward_bias": False, "norm_bias": False, "tie_embeddings": False,
        "rope_theta": 10_000.0, "dropout": 0.0,
    }  # fmt: skip
    assert GPTConfig.from_dict(BASE.to_dict()) == BASE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be a whole number of 1 or more"),
        ({"n_layers": 2.5}, "n_layers is 2.5; it must be a whole number of 1 or more"),
        ({"n_heads": True}, "n_heads is True; it must be a whole number of 1 or more"),
        ({"context_length": "12"}, "context_length is '12'; it must be a whole number of 1 or more"),
        ({"d_ff": 10**30}, f"d_ff is {10**30}; no size of a model reaches 2^31"),
        ({"context_length": 2**24 + 1}, "context_length is 16777217; fp32 tells no more than 2^24 positions apart"),
        ({"positions": "sinusoidal"}, "positions is 'sinusoidal'; it must be one of: learned, rope, alibi"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm'; it must be one of: layernorm, rmsnorm"),
        ({"feedforward": "relu"}, "feedforward is 'relu'; it must be one of: gelu, gelu_tanh, swiglu"),
        (
            {"n_heads": 5},
            "d_model 24 is not divisible by n_heads 5; each head takes an equal share of the width",
        ),
        (
            {"n_kv_heads": 4},
            "n_heads 6 is not divisible by n_kv_heads 4; each key head serves an equal number of query heads",
        ),
        (
            {"n_heads": 8, "n_kv_heads": 8},
            "head size 3 (d_model / n_heads) is odd; RoPE rotates pairs and needs it even",
        ),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be above 0"),
        ({"norm_eps": math.nan}, "norm_eps is nan; it must be a number"),
        ({"norm_eps": "1e-5"}, "norm_eps is '1e-5'; it must be a number (YAML takes 6e-4 for a text; write 6.0e-4)"),
        ({"rope_theta": math.inf}, "rope_theta is inf; it must be a number"),
        ({"tie_embeddings": "no"}, "tie_embeddings is 'no'; it must be true or false"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0; it must be above 0"),
        ({"sliding_window": 0}, "sliding_window is 0; it must be a whole number of 1 or more"),
        (
            {"positions": "alibi", "rope_scaling": RopeScaling("linear", 2.0)},
            "rope_scaling is given, but positions is 'alibi'; only RoPE can be scaled",
        ),
        (
            {"rope_scaling": "linear"},
            "rope_scaling is 'linear'; its kind, factor and further numbers are needed, or null",
        ),
        (
            {"rope_scaling": RopeScaling("dynamic", 2.0, 5)},
            "context_length is 12; with RoPE scaling 'dynamic' it must be factor times original_context, 10",
        ),
        (
            {"rope_scaling": RopeScaling("dynamic", 2.0, 6), "n_heads": 12},
            "head size 2 is too small for RoPE scaling 'dynamic'; at least 4",
        ),
        (
            {"rope_scaling": RopeScaling("yarn", 2.0, 6), "rope_theta": 1.0},
            "rope_theta is 1.0; RoPE scaling 'yarn' needs it above 1",
        ),
    ],
)
def test_a_field_out_of_range_is_named_with_what_would_be_right(changes, message):
    with pytest.raises(InputError) as error:
        dataclasses.replace(BASE, **changes)
    assert str(error.value) == message


def test_unknown_and_missing_fields_are_refused():
    with pytest.raises(InputError, match="unknown model field 'n_head'; known: vocab_size, "):
        GPTConfig.from_dict(BASE.to_dict() | {"n_head": 6})
    fields = BASE.to_dict()
    del fields["d_ff"]
    with pytest.raises(InputError, match="model field 'd_ff' is missing"):
        GPTConfig.from_dict(fields)
    with pytest.raises(InputError, match="unknown field 'type' of rope_scaling; known: attention_factor, beta_fast, "):
        GPTConfig.from_dict(BASE.to_dict() | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    with pytest.raises(InputError, match="field 'factor' of rope_scaling is missing"):
        GPTConfig.from_dict(BASE.to_dict() | {"rope_scaling": {"kind": "linear"}})
