"""Runs that are killed under one strategy and go on under another, on another number of processes."""

import numpy as np
import pytest

from modelcore.training import CheckpointPlace
from modelcore.training.checkpoints import open_checkpoints
from modelcore.training.optimizer import Optimizer
from modelcore.training.sharding import build
from tests.modelcore.training.test_initialization import LARGE, SIZE, peak_of
from tests.modelcore.training.test_parallel import make_model, make_settings, on_ranks, run

DDP = {}
FSDP = {"parallel": "fsdp"}
HYBRID = {"parallel": "fsdp", "shard_size": 2}
TENSOR = {"tensor_parallel": 2}
BOTH = FSDP | TENSOR
SETTINGS = {"checkpoint_every": 6, "ema_decay": 0.9, "spike_deviations": 6.0}


@pytest.fixture(scope="module")
def unbroken():
    """The history of one process that was never killed."""
    return on_ranks(1, run, make_settings(**SETTINGS))[0][1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, FSDP), (2, TENSOR)),
        pytest.param((2, DDP), (4, FSDP), marks=pytest.mark.slow),
        pytest.param((4, FSDP), (1, DDP), marks=pytest.mark.slow),
        pytest.param((4, HYBRID), (2, FSDP), marks=pytest.mark.slow),
        pytest.param((4, BOTH), (2, DDP), marks=pytest.mark.slow),
        pytest.param((2, TENSOR), (4, BOTH), marks=pytest.mark.slow),
        pytest.param((1, DDP), (4, BOTH), marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_under_another_strategy_as_if_it_had_never_been_killed(tmp_path, unbroken, before, after):
    on_ranks(before[0], run, make_settings(**SETTINGS, **before[1]), tmp_path, killed_at=8)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]
    results = on_ranks(after[0], run, make_settings(**SETTINGS, **after[1]), tmp_path)
    for _, history, seen, _ in results:
        assert min(seen) == 6  # nothing is read again
        np.testing.assert_allclose(history.loss_curve["loss"], unbroken.loss_curve["loss"], rtol=0, atol=1e-5)
        bits = history.heldout_curve["bits_per_byte"]
        assert bits == pytest.approx(unbroken.heldout_curve["bits_per_byte"], abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000012"]


@pytest.mark.parametrize(("size", "strategy"), [(2, FSDP), pytest.param(4, HYBRID, marks=pytest.mark.slow)])
def test_on_as_many_processes_it_ends_bit_for_bit(tmp_path, size, strategy):
    """With dropout on: each process's own generator goes on where it was."""
    settings = make_settings(**SETTINGS, **strategy)
    unbroken = on_ranks(size, run, settings, dropout=0.2)
    on_ranks(size, run, settings, tmp_path, killed_at=8, dropout=0.2)
    resumed = on_ranks(size, run, settings, tmp_path, dropout=0.2)
    for (weights, history, _, _), (expected, other, _, _) in zip(resumed, unbroken, strict=True):
        assert np.array_equal(weights, expected)
        assert history.loss_curve["loss"] == other.loss_curve["loss"]


def opened(ranks, config, folder, strategy):
    """A new model and its optimizer's state, and where its checkpoints are."""
    settings = make_settings(**strategy)
    sharding = build(config, settings, ranks)
    optimizer = Optimizer(sharding.model, settings)
    return sharding.model, {"optimizer": optimizer}, open_checkpoints(CheckpointPlace(folder, {}), sharding, 1)


def saved_large(ranks, folder, strategy):
    model, parts, checkpoints = opened(ranks, LARGE, folder, strategy)
    for parameter in model.parameters():
        parts["optimizer"].adamw._begin(parameter)
    with checkpoints:
        checkpoints.save(1, model, parts, progress={}, random={})
        checkpoints.finish()


def peak_of_resuming(ranks, folder, strategy):
    model, parts, checkpoints = opened(ranks, make_model().config, folder / "none", strategy)
    with checkpoints:
        checkpoints.resume(model, parts)  # imports what it needs
    model, parts, checkpoints = opened(ranks, LARGE, folder, strategy)
    with checkpoints:
        return peak_of(lambda: checkpoints.resume(model, parts))


@pytest.mark.slow
@pytest.mark.parametrize("before", [DDP, FSDP])
def test_no_process_ever_loads_the_whole_state(tmp_path, before):
    on_ranks(2, saved_large, tmp_path, before)
    peaks = on_ranks(2, peak_of_resuming, tmp_path, FSDP)
    # Its half of two moments is new, and of three tensors a parameter it maps its half of the files.
    assert max(peaks) < 0.9 * 3 * SIZE
    assert min(peaks) > SIZE  # the state was loaded
