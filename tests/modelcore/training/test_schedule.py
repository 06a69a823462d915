import itertools
import math

import pytest

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


def test_a_run_of_one_step_has_a_rate():
    assert 0 < learning_rate_factor(0, schedule="cosine", **(RUN | {"steps": 1, "warmup_steps": 1})) <= 1
