"""Training with a padded vocabulary: the same run, the same checkpoints, and resuming with any other padding."""

import pytest
import torch
from safetensors.torch import load_file

from modelcore.gptx import pad_vocabulary
from modelcore.training import CheckpointPlace, train


@pytest.fixture
def run(make_model, make_settings, make_batches):
    def run(multiple, steps=24, folder=None, optimizer="adamw", **changes):
        settings = make_settings(steps=steps, optimizer=optimizer, checkpoint_every=6, schedule="constant")
        model = pad_vocabulary(make_model(**changes), multiple)
        place = None if folder is None else CheckpointPlace(folder, {"seed": 0})
        history = train(model, make_batches(settings), settings, bytes_per_token=3.0, checkpoints=place)
        return model, history

    return run


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_padded_run_is_the_plain_run(run, optimizer, tied):
    plain, expected = run(1, optimizer=optimizer, tie_embeddings=tied)
    padded, history = run(64, optimizer=optimizer, tie_embeddings=tied)
    for name, tensor in padded.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=0, atol=2e-5)
    assert history.loss_curve["loss"] == pytest.approx(expected.loss_curve["loss"], abs=1e-5)
    assert history.loss_curve["gradient_norm"] == pytest.approx(expected.loss_curve["gradient_norm"], rel=1e-4)
    assert not padded.embedding.weight[61:].any()


def test_checkpoints_hold_the_vocabulary_alone(run, tmp_path):
    run(64, folder=tmp_path, tie_embeddings=False)
    path = tmp_path / "step-00000024"
    weights, state = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    assert weights["embedding.weight"].shape == weights["head.weight"].shape == (61, 32)
    assert state["adamw.exp_avg.embedding.weight"].shape == state["adamw.exp_avg_sq.head.weight"].shape == (61, 32)


def test_a_padded_run_that_was_interrupted_ends_bit_for_bit_like_an_unbroken_one(run, tmp_path):
    unbroken, _ = run(64)
    run(64, steps=12, folder=tmp_path)
    resumed, history = run(64, folder=tmp_path)
    assert history.steps == 24
    assert torch.equal(resumed.embedding.weight, unbroken.embedding.weight)


@pytest.mark.parametrize(("first", "second"), [(1, 64), (64, 1), (64, 128)])
def test_a_run_resumes_with_another_padding(run, tmp_path, first, second):
    unbroken, _ = run(1)
    run(first, steps=12, folder=tmp_path)
    resumed, _ = run(second, folder=tmp_path)
    for name, tensor in resumed.state_dict().items():
        torch.testing.assert_close(tensor, unbroken.state_dict()[name], rtol=0, atol=2e-5)
