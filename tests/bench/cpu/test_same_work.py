"""Ours and the peer do the same work: same weights, same batch, same loss, same tokens."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.benchmark import Options
from bench.cpu import decoding, first_token, loader, text, training
from bench.cpu.hugging_face import as_huggingface
from modelcore.training.gradients import accumulate_gradients


@pytest.fixture
def small():
    return Options(small=True)


def test_training_has_the_same_loss_and_gradients_on_both_sides(small):
    settings = training.our_settings(small, optimizer="adamw")
    model = training.make_model(settings)
    peer = as_huggingface(model)
    batch = training.Batches(settings).batch(0)
    ours = accumulate_gradients(model.hidden, model.head, batch, 0, torch.enable_grad)
    theirs = training.huggingface_loss(peer, *batch)
    theirs.backward()
    torch.testing.assert_close(ours, theirs.detach())
    torch.testing.assert_close(model.head.weight.grad, peer.lm_head.weight.grad)
    torch.testing.assert_close(model.embedding.weight.grad, peer.model.embed_tokens.weight.grad)


def test_the_settings_are_the_default_recipes_but_for_the_length_of_the_run():
    from modelcore.training import DEFAULT_RECIPE, load_recipe

    ours, recipe = training.our_settings(Options(), optimizer="adamw"), load_recipe(DEFAULT_RECIPE).training
    assert (ours.batch_size, ours.sequence_length) == (recipe.batch_size, recipe.sequence_length)
    assert training.our_settings(Options()).optimizer == recipe.optimizer
    assert training.our_settings(Options(settings={"batch_size": 4})).batch_size == 4


def test_decoding_gives_the_same_tokens_on_both_sides(small):
    model, prompt = decoding.make_model(small), [3, 1, 4, 1, 5]
    ours = decoding.ours(model, prompt)(12)
    assert len(ours) == 12
    assert decoding.huggingface(model, prompt)(12) == ours


def test_a_step_of_decoding_reads_the_tied_head_once_and_no_table_of_positions(small):
    model = decoding.make_model(small)
    assert model.config.tie_embeddings
    expected = 4 * (model.config.num_params() - model.config.context_length * model.config.d_model)
    assert decoding.read_bytes(model) == expected


def test_decoding_is_of_gpt2_small_at_its_real_size():
    from modelcore.models import get_config

    assert decoding.config_of(Options()) == get_config("gpt2-small")


def test_both_first_tokens_are_of_the_same_model(tmp_path, small):
    native, exported = tmp_path / "native", tmp_path / "exported"
    first_token.write_models(native, exported, small)
    told = {}
    for program, folder, shown in (
        (first_token.OURS, native, "print(made[0].tokens)"),
        (first_token.THEIRS, exported, "print(made[0, 3:].tolist())"),
    ):
        lines = program.replace("FOLDER", repr(str(folder))).strip().splitlines()
        lines[-1] = "made = " + lines[-1]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join([*lines, shown])], capture_output=True, text=True, check=True
        )
        told[folder] = done.stdout
    assert told[native] == told[exported]
    assert told[native].startswith("[")


def test_the_loaders_give_windows_of_the_same_tokens(tmp_path):
    split = loader._write(tmp_path, 65)
    windows = loader.Windows(np.memmap(tmp_path / loader.FILE, dtype="<u2", mode="r"), 16)
    assert len(windows) == 3
    inputs, targets = windows[1]
    assert inputs.tolist() == split.window(16, 16).tolist()
    assert targets.tolist() == split.window(17, 16).tolist()


def test_the_generated_text_is_as_long_as_asked_the_same_every_time_and_no_repetition():
    made = list(text.documents(100_000))
    assert 100_000 <= sum(map(len, made)) < 120_000
    assert made == list(text.documents(100_000))
    assert len(set(made)) == len(made)
    known = {word for novel in text.novels() for word in novel.split(" ")}
    words = [word for each in made for word in each.split(" ")]
    new = sum(word not in known for word in words) / len(words)
    assert 0.005 < new <= 0.02
