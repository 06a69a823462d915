import math
from pathlib import Path

import pytest

from modelcore.errors import InputError
from modelcore.training import DEFAULT_RECIPE, TrainingSettings, load_recipe, recipe_names
from modelcore.training.recipe import Recipe

OWN = """
model: llama-nano
overrides: {n_layers: 2, dropout: 0.1}
training:
  steps: 10
  batch_size: 4
  sequence_length: 32
  learning_rate: 1.0e-3
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return str(path)


def message(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_along_is_valid(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.config(vocab_size=1000).vocab_size == 1000


def test_the_default_is_one_of_them():
    assert DEFAULT_RECIPE in recipe_names()


def test_the_named_models_have_their_published_sizes():
    assert load_recipe("gpt2-small").config(50257).num_params() == 124_439_808
    assert load_recipe("tinyllama-1.1b").config(32000).num_params() == 1_100_048_384


def test_the_default_model_is_small_enough_for_a_minute_of_two_cores():
    assert 1e6 < load_recipe(DEFAULT_RECIPE).config(2048).num_params() < 3e6


def test_published_batches_have_their_published_number_of_tokens():
    gpt2, tinyllama = load_recipe("gpt2-small").training, load_recipe("tinyllama-1.1b").training
    assert gpt2.batch_size * gpt2.sequence_length == 491_520
    assert tinyllama.batch_size * tinyllama.sequence_length == 2_097_152


def test_a_file_of_ones_own_is_read(tmp_path):
    recipe = load_recipe(write(tmp_path, OWN))
    config = recipe.config(vocab_size=300)
    assert (config.n_layers, config.dropout, config.vocab_size, config.context_length) == (2, 0.1, 300, 32)
    assert recipe.training.steps == 10


def test_a_recipe_survives_the_way_through_plain_values(tmp_path):
    recipe = load_recipe(write(tmp_path, OWN))
    assert Recipe.from_dict(recipe.to_dict(), recipe.name) == recipe


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"unknown recipe 'gpt5'; known: .*gpt2-small.*llama-nano"):
        load_recipe("gpt5")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no recipe file at .*none\.yaml"):
        load_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OWN + "colour: red", "recipe own: unknown key 'colour'"),
        (OWN + "  momentum: 0.9", "recipe own, training: unknown key 'momentum'"),
        (OWN.replace("  steps: 10\n", ""), "recipe own, training: key 'steps' is missing"),
        (OWN.replace("n_layers: 2", "layers: 2"), "recipe own: unknown model field 'layers'"),
        (OWN.replace("n_layers: 2", "n_heads: 7"), "recipe own: d_model"),
        (OWN.replace("n_layers: 2", "vocab_size: 9"), "overrides vocab_size, which the tokenizer decides"),
        (OWN.replace("n_layers: 2", "norm_eps: 1e-6"), "recipe own: norm_eps is '1e-6'; it must be a number"),
        (OWN.replace("n_layers: 2", "tie_embeddings: maybe"), "recipe own: tie_embeddings is 'maybe'; it must be true"),
        (OWN.replace("llama-nano", "llama-9000"), "llama-9000"),
        (OWN.replace("llama-nano", "[llama-nano]"), "unknown model configuration ['llama-nano']"),
        (OWN.replace("1.0e-3", "6e-4"), "learning_rate is '6e-4'; it must be a number (YAML takes 6e-4 for a text"),
        ("training: [", "is no valid YAML"),
        ("just words", "found 'just words' where an object"),
        ("!!python/object/apply:os.system ['true']", "is no valid YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(tmp_path, text, expected):
    assert expected in message(tmp_path, text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("batch_size", True),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("weight_decay", math.inf),
        ("muon_learning_rate", 0),
        ("weight_decay", -0.1),
        ("muon_iterations", 0),
        ("clip_norm", -1),
        ("final_fraction", 1.5),
        ("decay_fraction", "half"),
        ("betas", (0.9, 1.0)),
        ("betas", 0.9),
        ("warmup_steps", -1),
        ("schedule", "step"),
        ("optimizer", "sgd"),
        ("precision", "fp8"),
        ("compile", "yes"),
        ("separate_documents", 1),
        ("recompute", "yes"),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
        ("spike_deviations", -1.0),
        ("micro_batch_size", 3),
        ("learning_rate", math.inf),
        ("seed", 1 << 63),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    fields = {"steps": 10, "batch_size": 4, "sequence_length": 8, "learning_rate": 1e-3}
    with pytest.raises(InputError, match=field):
        TrainingSettings(**(fields | {field: value}))
