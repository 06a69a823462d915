import math
from pathlib import Path

import pytest
import torch

from modelcore.errors import InputError
from modelcore.training import CheckpointPlace, loop, train
from modelcore.training.heldout import Heldout
from modelcore.training.state import latest_checkpoint

BYTES_PER_TOKEN = 3.0


class KilledError(Exception):
    """Stands for the end of a process."""


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_model_learns(make_model, make_settings, make_batches, split, optimizer):
    settings = make_settings(steps=60, optimizer=optimizer, learning_rate=1e-2)
    heldout = Heldout(split, 16, 1000)
    model = make_model(dropout=0.0)
    history = train(model, make_batches(settings), settings, bytes_per_token=BYTES_PER_TOKEN, heldout=heldout)
    assert history.loss_curve["loss"][0] == pytest.approx(math.log(61), abs=0.3)  # it knows nothing at first
    assert history.loss_curve["loss"][-1] < 2.5
    assert history.heldout_curve["bits_per_byte"][-1] < 2.5 / math.log(2) / BYTES_PER_TOKEN
    assert not model.training


def test_curves_have_a_point_every_log_every_steps_and_at_the_end(make_model, make_settings, make_batches, split):
    settings = make_settings(steps=10, log_every=4, eval_every=5, batch_size=4)
    reported = []
    history = train(
        make_model(),
        make_batches(settings),
        settings,
        bytes_per_token=BYTES_PER_TOKEN,
        heldout=Heldout(split, 16, 100),
        report=lambda step, metrics: reported.append((step, set(metrics))),
    )
    curve = history.loss_curve
    names = {"loss", "gradient_norm", "tokens_per_second", "bits_per_byte", "learning_rate", "mfu"}
    assert curve["step"] == [4, 8, 10]
    assert curve.keys() == {"step"} | names
    assert history.heldout_curve["step"] == [5, 10]
    assert reported == [
        (4, names),
        (5, {"heldout_bits_per_byte"}),
        (8, names),
        (10, names),
        (10, {"heldout_bits_per_byte"}),
    ]
    assert curve["bits_per_byte"] == pytest.approx([x / math.log(2) / BYTES_PER_TOKEN for x in curve["loss"]])
    assert curve["learning_rate"][-1] == pytest.approx(0.1 * settings.learning_rate)
    assert all(value > 0 for value in curve["mfu"])
    assert (history.steps, history.tokens, history.skipped_steps) == (10, 10 * 4 * 16, 0)


def test_a_batch_in_pieces_trains_the_same_model(make_model, make_settings, make_batches):
    trained = []
    for micro_batch_size in (0, 2):
        settings = make_settings(steps=6, micro_batch_size=micro_batch_size)
        model = make_model(dropout=0.0)
        train(model, make_batches(settings), settings, bytes_per_token=BYTES_PER_TOKEN)
        trained.append(weights(model))
    torch.testing.assert_close(*trained, rtol=0, atol=2e-5)


def test_the_gradient_is_scaled_down_to_the_clipping_norm(make_model, make_settings, make_batches):
    settings = make_settings(steps=1, clip_norm=1e-3, log_every=1)
    seen = []

    class Watched(loop.Optimizer):
        def step(self, factor, finite):
            grads = [parameter.grad for parameter in model.parameters()]
            seen.append(torch.nn.utils.get_total_norm(grads).item())
            super().step(factor, finite)

    model = make_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Optimizer", Watched)
        history = train(model, make_batches(settings), settings, bytes_per_token=BYTES_PER_TOKEN)
    assert seen == pytest.approx([1e-3], rel=1e-3)
    assert history.loss_curve["gradient_norm"][0] > 0.1  # what is reported is the norm before


class Poisoned:
    """Batches whose given steps make the loss NaN: the model's embedding of token 0 is NaN, and only they have it."""

    def __init__(self, batches, steps):
        self.batches, self.steps = batches, steps

    def batch(self, step, rank=0, world_size=1):
        inputs, targets = self.batches.batch(step)
        inputs = inputs.clamp_min(1)
        if step in self.steps:
            inputs[0, 0] = 0
        return inputs, targets


def poisoned_model(make_model):
    model = make_model(tie_embeddings=False)
    with torch.no_grad():
        model.embedding.weight[0] = float("nan")
    return model


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(make_model, make_settings, make_batches, optimizer):
    settings = make_settings(steps=12, log_every=4, optimizer=optimizer)
    model = poisoned_model(make_model)
    history = train(model, Poisoned(make_batches(settings), {2, 4, 5, 6, 7}), settings, bytes_per_token=BYTES_PER_TOKEN)
    assert history.skipped_steps == 5
    assert history.loss_curve["step"] == [4, 12]  # from step 4 to 8 there was no loss to report
    with torch.no_grad():
        model.embedding.weight[0] = 0
    assert torch.isfinite(weights(model)).all()


def test_too_many_such_steps_in_a_row_end_the_run_and_the_checkpoint_before_stays(
    make_model, make_settings, make_batches, tmp_path
):
    settings = make_settings(steps=30, checkpoint_every=4, log_every=5)
    batches = Poisoned(make_batches(settings), set(range(6, 30)))
    place = CheckpointPlace(tmp_path, {})
    with pytest.raises(InputError, match=r"not finite in 14 steps in a row, up to step 20; a smaller learning_rate"):
        train(poisoned_model(make_model), batches, settings, bytes_per_token=BYTES_PER_TOKEN, checkpoints=place)
    assert latest_checkpoint(tmp_path) is not None


def test_a_run_shorter_than_that_whose_every_step_fails_is_no_success(make_model, make_settings, make_batches):
    settings = make_settings(steps=3)
    with pytest.raises(InputError, match="not finite in 3 steps in a row"):
        train(
            poisoned_model(make_model),
            Poisoned(make_batches(settings), {0, 1, 2}),
            settings,
            bytes_per_token=BYTES_PER_TOKEN,
        )


def interrupt_at(step):
    def report(now, metrics):
        if now == step:
            raise KilledError

    return report


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("micro_batch_size", [0, 2])
def test_a_run_interrupted_twice_ends_bit_for_bit_like_an_unbroken_one(
    make_model, make_settings, make_batches, split, tmp_path, optimizer, micro_batch_size
):
    """With dropout on; the checkpoints fall between points of the curves and before an evaluation."""
    settings = make_settings(
        optimizer=optimizer, micro_batch_size=micro_batch_size, checkpoint_every=5, eval_every=6, log_every=4
    )

    def run(folder: Path, report=lambda step, metrics: None):
        model = make_model()
        history = train(
            model,
            make_batches(settings),
            settings,
            bytes_per_token=BYTES_PER_TOKEN,
            heldout=Heldout(split, 16, 200),
            checkpoints=CheckpointPlace(folder, {"seed": 0}),
            report=report,
        )
        return weights(model), history

    unbroken, expected = run(tmp_path / "unbroken")
    with pytest.raises(KilledError):
        run(tmp_path / "broken", interrupt_at(8))
    torch.rand(13)  # whatever the process draws in between does not matter
    with pytest.raises(KilledError):
        run(tmp_path / "broken", interrupt_at(20))
    resumed, history = run(tmp_path / "broken")
    assert torch.equal(resumed, unbroken)
    assert history.heldout_curve == expected.heldout_curve
    for column in ("step", "loss", "bits_per_byte", "learning_rate", "gradient_norm"):
        assert history.loss_curve[column] == expected.loss_curve[column]
    assert history.tokens == expected.tokens


def test_a_finished_run_started_again_has_nothing_left_to_do(make_model, make_settings, make_batches, tmp_path):
    settings = make_settings(steps=5)
    results = []
    for _ in range(2):
        model = make_model()
        history = train(
            model,
            make_batches(settings),
            settings,
            bytes_per_token=BYTES_PER_TOKEN,
            checkpoints=CheckpointPlace(tmp_path, {}),
        )
        results.append((weights(model), history))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_each_checkpoint_is_handed_on(make_model, make_settings, make_batches, tmp_path):
    settings = make_settings(steps=5, checkpoint_every=2)
    handed = []
    place = CheckpointPlace(tmp_path, {}, saved=lambda path: handed.append(path.name))
    train(make_model(), make_batches(settings), settings, bytes_per_token=BYTES_PER_TOKEN, checkpoints=place)
    assert handed == ["step-00000002", "step-00000004", "step-00000005"]


def test_bf16_autocast_keeps_weights_in_fp32_and_learns(make_model, make_settings, make_batches):
    settings = make_settings(steps=20, precision="bf16", learning_rate=1e-2)
    model = make_model(dropout=0.0)
    history = train(model, make_batches(settings), settings, bytes_per_token=BYTES_PER_TOKEN)
    assert weights(model).dtype == torch.float32
    assert history.loss_curve["loss"][-1] < history.loss_curve["loss"][0] - 0.3
