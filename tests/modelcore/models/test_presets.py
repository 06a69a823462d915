"""The named configurations have the published sizes."""

import pytest
import torch

from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.models import PRESETS, get_config


@pytest.mark.parametrize(("name", "parameters"), [("gpt2-small", 124_439_808), ("tinyllama-1.1b", 1_100_048_384)])
def test_published_models_have_exactly_their_number_of_parameters(name, parameters):
    config = get_config(name)
    with torch.device("meta"):
        model = GPT(config)
    assert config.num_params() == parameters
    assert sum(p.numel() for p in model.parameters()) == parameters  # a tied head is yielded once


@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano"])
def test_nano_models_have_one_to_three_million_parameters(name):
    assert 1_000_000 < get_config(name).num_params() < 3_000_000


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown model configuration 'gpt5'; known: gpt2-small.*tinyllama-1.1b"):
        get_config("gpt5")
    assert "gpt5" not in PRESETS
