import itertools
import math

import pytest
import torch

from modelcore.training.schedule import learning_rate_factor

RUN = {"steps": 100, "warmup_steps": 10, "final_fraction": 0.1, "decay_fraction": 0.2}


def curve(schedule: str, **changes: float) -> list[float]:
    run = RUN | changes
    return [learning_rate_factor(step, schedule=schedule, **run) for step in range(run["steps"])]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule):
    assert curve(schedule)[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_last_step_has_the_final_fraction(schedule):
    assert curve(schedule)[-1] == pytest.approx(0.1)
    assert curve(schedule, final_fraction=0.0)[-1] == pytest.approx(0.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_after_the_warm_up_the_rate_never_rises(schedule):
    factors = curve(schedule)[9:]
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))


def test_cosine_follows_half_a_cosine():
    # Halfway between the end of the warm-up and the last step.
    assert curve("cosine")[54] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_linear_falls_by_the_same_amount_each_step():
    factors = curve("linear")[9:]
    falls = [earlier - later for earlier, later in itertools.pairwise(factors)]
    assert falls == pytest.approx([0.9 / 90] * 90)


def test_wsd_is_flat_until_the_last_fifth():
    factors = curve("wsd")
    assert factors[9:80] == [1.0] * 71
    assert factors[80] < 1.0


def test_constant_stays_at_the_peak():
    assert curve("constant")[9:] == [1.0] * 91


def test_without_warm_up_the_first_step_is_nearly_at_the_peak():
    assert curve("linear", warmup_steps=0)[0] == pytest.approx(0.991)


def test_a_decay_longer_than_what_the_warm_up_leaves_starts_after_the_warm_up():
    factors = curve("wsd", decay_fraction=1.0)
    assert factors[9] == 1.0
    assert factors[10] < 1.0
    assert factors[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("warmup_steps", [0, 10])
@pytest.mark.parametrize("final_fraction", [0.0, 0.1])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_rates_are_those_of_transformers_schedules(schedule, warmup_steps, final_fraction):
    """Theirs are of the steps done before, so their first is 0; ours are of the step that is being done."""
    from transformers import optimization

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    make = {
        "cosine": lambda: optimization.get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, warmup_steps, 100, min_lr_rate=final_fraction
        ),
        "linear": lambda: optimization.get_polynomial_decay_schedule_with_warmup(
            optimizer, warmup_steps, 100, lr_end=final_fraction
        ),
        "wsd": lambda: optimization.get_wsd_schedule(
            optimizer,
            num_warmup_steps=warmup_steps,
            num_decay_steps=20,
            num_training_steps=100,
            min_lr_ratio=final_fraction,
            decay_type="linear",
        ),
        "constant": lambda: optimization.get_constant_schedule_with_warmup(optimizer, warmup_steps),
    }
    (theirs,) = make[schedule]().lr_lambdas
    ours = curve(schedule, warmup_steps=warmup_steps, final_fraction=final_fraction)
    start = warmup_steps if schedule == "wsd" else 0  # their WSD warms up from the final fraction on, ours from 0
    assert ours[start:] == pytest.approx([theirs(step + 1) for step in range(start, 100)])


def test_a_run_of_one_step_has_a_rate():
    assert 0 < learning_rate_factor(0, schedule="cosine", **(RUN | {"steps": 1, "warmup_steps": 1})) <= 1
