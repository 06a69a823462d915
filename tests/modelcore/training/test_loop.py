import contextlib
import math
from pathlib import Path

import pytest
import torch

from modelcore.errors import InputError
from modelcore.training import CheckpointPlace, loop, spikes, train
from modelcore.training.checkpoint_list import latest_checkpoint
from modelcore.training.heldout import Heldout

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
    """Batches whose given steps make the loss NaN: they have token 0, at which :func:`poisoned_model` makes NaN."""

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
    model.embedding.register_forward_hook(
        lambda module, tokens, out: out.masked_fill(tokens[0][..., None] == 0, math.nan)
    )
    return model


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(make_model, make_settings, make_batches, optimizer):
    settings = make_settings(steps=12, log_every=4, optimizer=optimizer)
    model = poisoned_model(make_model)
    history = train(model, Poisoned(make_batches(settings), {2, 4, 5, 6, 7}), settings, bytes_per_token=BYTES_PER_TOKEN)
    assert history.skipped_steps == 5
    assert history.loss_curve["step"] == [4, 12]  # from step 4 to 8 there was no loss to report
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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_whose_weights_grew_without_bound_is_no_success_and_saves_nothing(
    make_model, make_settings, make_batches, split, tmp_path, optimizer
):
    settings = make_settings(
        steps=2, warmup_steps=0, learning_rate=1e30, muon_learning_rate=1e30, optimizer=optimizer, checkpoint_every=1
    )
    with pytest.raises(InputError, match=r"is (inf|nan) after step 1: training has diverged; a smaller learning_rate"):
        train(
            make_model(),
            make_batches(settings),
            settings,
            bytes_per_token=BYTES_PER_TOKEN,
            checkpoints=CheckpointPlace(tmp_path, {}),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_held_out_loss_that_is_not_finite_ends_the_run_and_the_checkpoint_before_stays(
    make_model, make_settings, make_batches, split, tmp_path
):
    settings = make_settings(steps=12, checkpoint_every=4, eval_every=5)
    model = make_model(tie_embeddings=False)
    with torch.no_grad():
        model.head.weight[60] = 1e38  # finite, but not what the head makes of it
    model.head.weight.requires_grad_(False)
    unseen = split.tokens.copy()
    with pytest.raises(InputError, match=r"the held-out loss is (inf|nan) after step 5: training has diverged"):
        train(
            model,
            Poisoned(make_batches(settings), ()),
            settings,
            bytes_per_token=BYTES_PER_TOKEN,
            heldout=Heldout(type(split)(unseen, 1), 16, 100),
            checkpoints=CheckpointPlace(tmp_path, {}),
        )
    assert latest_checkpoint(tmp_path).name == "step-00000004"


class Shouting:
    """Batches one of which makes the loss leap: its targets are what the model has learned never to expect."""

    def __init__(self, batches, steps):
        self.batches, self.steps = batches, steps

    def batch(self, step, rank=0, world_size=1):
        inputs, targets = self.batches.batch(step)
        return inputs, (targets + 30) % 61 if step in self.steps else targets


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_spike_is_left_out_and_counted_apart(make_model, make_settings, make_batches, optimizer):
    """The step leaves weights, optimizer state and average as they were, bit for bit."""
    settings = make_settings(
        steps=110, optimizer=optimizer, spike_deviations=6.0, ema_decay=0.9, schedule="constant", log_every=10
    )
    before, after = {}, {}

    class Watched(loop.WeightAverage):
        def update(self, step, taken):
            super().update(step, taken)
            if step in (99, 100):
                tensors = {f"average.{name}": value for name, value in self.state_tensors().items()}
                tensors |= dict(model.named_parameters()) | optimizers[0].state_tensors()
                (before, after)[step - 99].update({name: value.detach().clone() for name, value in tensors.items()})

    optimizers = []

    class Kept(loop.Optimizer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            optimizers.append(self)

    model = make_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "WeightAverage", Watched)
        patch.setattr(loop, "Optimizer", Kept)
        history = train(model, Shouting(make_batches(settings), {100}), settings, bytes_per_token=BYTES_PER_TOKEN)
    assert (history.spike_steps, history.skipped_steps) == (1, 0)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert history.loss_curve["loss"][10] < history.loss_curve["loss"][9] + 0.5  # the curve is of the steps taken


def test_the_average_of_the_weights_is_what_is_evaluated_and_left_behind(
    make_model, make_settings, make_batches, split
):
    settings = make_settings(steps=20, ema_decay=0.9, learning_rate=1e-2)
    heldout = Heldout(split, 16, 500)
    plain, averaged = make_model(dropout=0.0), make_model(dropout=0.0)
    expected = loop.WeightAverage(dict(plain.named_parameters()), 0.9)

    class Watched(loop.WeightAverage):
        def update(self, step, taken):
            super().update(step, taken)
            expected.update(step, taken)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "WeightAverage", Watched)
        without = make_settings(steps=20, learning_rate=1e-2)
        train(plain, make_batches(without), without, bytes_per_token=BYTES_PER_TOKEN)
    history = train(averaged, make_batches(settings), settings, bytes_per_token=BYTES_PER_TOKEN, heldout=heldout)
    assert not torch.equal(weights(averaged), weights(plain))
    for name, parameter in averaged.named_parameters():
        assert torch.equal(parameter, expected.state_tensors()[name]), name
    found = heldout.bits_per_byte(averaged, 8, contextlib.nullcontext)
    assert history.heldout_curve["bits_per_byte"][-1] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_recomputing_blocks_trains_the_same_model_bit_for_bit(make_model, make_settings, make_batches, optimizer):
    """With dropout on: the second pass through a block drops what the first one did."""
    trained, passes = [], []
    for recompute in ("nothing", "blocks"):
        settings = make_settings(steps=6, optimizer=optimizer, recompute=recompute)
        model = make_model(dropout=0.3)
        calls = []
        model.blocks[0].feedforward.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        train(model, make_batches(settings), settings, bytes_per_token=BYTES_PER_TOKEN)
        trained.append(weights(model))
        passes.append(len(calls))
    assert torch.equal(*trained)
    assert passes == [6, 12]


def interrupt_at(step):
    def report(now, metrics):
        if now == step:
            raise KilledError

    return report


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"micro_batch_size": 4, "ema_decay": 0.8, "spike_deviations": 1.5, "recompute": "blocks"},
    ],
    ids=["plain", "in pieces, with average, spikes and gradient checkpointing"],
)
def test_a_run_interrupted_twice_ends_bit_for_bit_like_an_unbroken_one(
    make_model, make_settings, make_batches, split, tmp_path, monkeypatch, optimizer, more
):
    """With dropout on; the checkpoints fall between points of the curves and before an evaluation."""
    monkeypatch.setattr(spikes, "WINDOW", 8)  # so that the rule begins within the run
    settings = make_settings(optimizer=optimizer, checkpoint_every=5, eval_every=6, log_every=4, **more)

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
    assert history.spike_steps == expected.spike_steps
    assert (history.spike_steps > 0) == ("spike_deviations" in more)


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
