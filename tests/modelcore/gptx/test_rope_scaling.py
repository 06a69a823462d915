"""Scaled RoPE: its angles are Hugging Face's at the sizes of published models, and wrong numbers are refused."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from modelcore.errors import InputError
from modelcore.gptx import RopeScaling
from modelcore.gptx.positions import rope_at, rope_tables
from modelcore.gptx.rope_scaling import rope_frequencies

# Head size, base, context, and the scaling there and here.
PUBLISHED = {
    "linear, LongChat": (128, 1e4, 16384, {"rope_type": "linear", "factor": 8.0}, RopeScaling("linear", 8.0)),
    "dynamic": (128, 1e4, 2048, {"rope_type": "dynamic", "factor": 4.0}, RopeScaling("dynamic", 4.0, 2048)),
    "llama3, Llama 3.1": (
        128,
        5e5,
        131072,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        RopeScaling("llama3", 8.0, 8192),
    ),
    "yarn, Yarn-Llama-2-128k": (
        128,
        1e4,
        131072,
        {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
        RopeScaling("yarn", 32.0, 4096),
    ),
    "yarn, every number": (
        64,
        1e6,
        40960,
        {
            "rope_type": "yarn",
            "factor": 10.0,
            "original_max_position_embeddings": 4096,
            "attention_factor": 1.1,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        RopeScaling("yarn", 10.0, 4096, attention_factor=1.1, beta_fast=20.0, beta_slow=2.0, truncate=False),
    ),
}


@pytest.mark.parametrize(("head_dim", "theta", "context", "theirs", "ours"), PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("growth", [0.5, 1, 1.7, 4])
def test_the_angles_are_hugging_faces(head_dim, theta, context, theirs, ours, growth):
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=context,
        rope_parameters=theirs | {"rope_theta": theta},
    )
    length = int(growth * context)
    expected, magnitude = ROPE_INIT_FUNCTIONS[ours.kind](config, seq_len=length)
    torch.testing.assert_close(ours.frequencies(head_dim, theta, length), expected, rtol=1e-6, atol=0)
    assert ours.magnitude == pytest.approx(magnitude)


def test_plain_angles_fall_geometrically():
    torch.testing.assert_close(rope_frequencies(8, 1e4), torch.tensor([1.0, 0.1, 0.01, 0.001]))


@pytest.mark.parametrize("scaling", [None, *(row[-1] for row in PUBLISHED.values())])
def test_tables_are_the_angles_of_a_text_that_is_short_enough(scaling):
    cos, sin = rope_tables(16, 50, 1e4, scaling)
    there = torch.tensor([[3, 49], [0, 7]])
    for table, part in zip((cos, sin), rope_at(there, 50, 16, 1e4, scaling), strict=True):
        torch.testing.assert_close(part, table[there], rtol=0, atol=0)


def test_dynamic_scaling_leaves_a_text_of_the_original_length_alone_and_stretches_a_longer_one():
    scaling, plain = RopeScaling("dynamic", 4.0, 100), rope_frequencies(16, 1e4)
    assert torch.equal(scaling.frequencies(16, 1e4, 100), plain)
    longer, longest = scaling.frequencies(16, 1e4, 101), scaling.frequencies(16, 1e4, 400)
    assert (longest[1:] < longer[1:]).all()
    assert (longer[1:] < plain[1:]).all()
    assert not scaling.depends_on(100)
    assert scaling.depends_on(101)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": "ntk", "factor": 2.0},
            "RoPE scaling 'ntk' is not supported; it must be one of: linear, dynamic, llama3, yarn",
        ),
        (
            {"kind": "linear", "factor": 0.5},
            "the factor of RoPE scaling is 0.5; it must be a number of 1 or more",
        ),
        (
            {"kind": "linear", "factor": float("nan")},
            "the factor of RoPE scaling is nan; it must be a number of 1 or more",
        ),
        (
            {"kind": "linear", "factor": 2.0, "original_context": 8},
            "original_context is 8, but RoPE scaling 'linear' has no such number",
        ),
        (
            {"kind": "llama3", "factor": 2.0, "original_context": 8, "beta_fast": 3.0},
            "beta_fast is 3.0, but RoPE scaling 'llama3' has no such number",
        ),
        (
            {"kind": "yarn", "factor": 2.0},
            "original_context of RoPE scaling 'yarn' is None; "
            "it must be a whole number of 1 or more, the context before the stretching",
        ),
        (
            {"kind": "llama3", "factor": 2.0, "original_context": 8, "low_freq_factor": 4.0},
            "low_freq_factor is 4.0 and high_freq_factor 4.0; they must be above 0, the second the larger",
        ),
        (
            {"kind": "yarn", "factor": 2.0, "original_context": 8, "beta_slow": 0},
            "beta_slow is 0 and beta_fast 32.0; they must be above 0, the second the larger",
        ),
        (
            {"kind": "yarn", "factor": 2.0, "original_context": 8, "attention_factor": -1.0},
            "attention_factor is -1.0; it must be a number above 0, or null",
        ),
        (
            {"kind": "yarn", "factor": 2.0, "original_context": 8, "truncate": "no"},
            "truncate is 'no'; it must be true or false",
        ),
    ],
)
def test_a_number_out_of_range_or_of_another_kind_is_named(fields, message):
    with pytest.raises(InputError) as error:
        RopeScaling(**fields)
    assert str(error.value) == message
