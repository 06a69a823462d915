import numpy as np
import pytest
import torch

from modelcore.training.spikes import WINDOW, SpikeRule

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)
CPU = torch.device("cpu")


def judge(rule, losses, norms=None):
    norms = losses if norms is None else norms
    return [bool(rule.is_spike(torch.tensor(a), torch.tensor(b), ONE)) for a, b in zip(losses, norms, strict=True)]


def calm(count, seed=0):
    return np.random.default_rng(seed).normal(3.0, 0.1, count).astype(np.float32).tolist()


def reference(losses, norms, deviations):
    """The rule in a few lines of NumPy."""
    found = []
    for step in range(len(losses)):
        before = np.array([losses[:step], norms[:step]], dtype=np.float64)[:, -WINDOW:]
        newest = np.array([losses[step], norms[step]])
        enough = before.shape[1] >= WINDOW // 2
        found.append(enough and bool((newest > before.mean(1) + deviations * before.std(1, ddof=1)).any()))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_spikes_are_those_that_the_definition_names(seed):
    generator = np.random.default_rng(seed)
    losses, norms = calm(400, seed), calm(400, seed + 10)
    for step in generator.integers(0, 400, 20):
        (losses if step % 2 else norms)[step] *= float(generator.uniform(1.0, 1.5))
    found = judge(SpikeRule(3.0, CPU), losses, norms)
    assert found == reference(losses, norms, 3.0)
    assert 3 < sum(found) < 25


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_a_loss_or_a_norm_that_stands_out_upwards_is_a_spike(which):
    rule = SpikeRule(6.0, CPU)
    assert not any(judge(rule, calm(200)))
    assert judge(rule, [9.0] if which == "loss" else [3.0], [3.0] if which == "loss" else [9.0]) == [True]


def test_one_that_is_strikingly_low_is_none():
    rule = SpikeRule(6.0, CPU)
    judge(rule, calm(200))
    assert judge(rule, [0.1]) == [False]


def test_the_first_steps_are_no_spikes_for_want_of_a_measure():
    rule = SpikeRule(6.0, CPU)
    judge(rule, calm(WINDOW // 2 - 1))
    assert judge(rule, [100.0, 3.0]) == [False, False]


def test_a_lasting_change_of_level_is_soon_taken_as_the_new_one():
    rule = SpikeRule(6.0, CPU)
    judge(rule, calm(200))
    found = judge(rule, [9.0] * 20)
    assert found[0]
    assert not any(found[5:])


def test_a_step_that_is_not_finite_is_no_spike_and_is_not_remembered():
    rule, spared = SpikeRule(6.0, CPU), SpikeRule(6.0, CPU)
    for value in calm(200):
        rule.is_spike(torch.tensor(value), torch.tensor(value), ONE)
        assert not rule.is_spike(torch.tensor(float("nan")), torch.tensor(float("inf")), ZERO)
        spared.is_spike(torch.tensor(value), torch.tensor(value), ONE)
    assert all(torch.equal(rule.state_tensors()[name], value) for name, value in spared.state_tensors().items())


def test_a_rule_goes_on_from_what_it_remembered():
    first, second = SpikeRule(3.0, CPU), SpikeRule(3.0, CPU)
    judge(first, calm(150))
    second.load_state_tensors({name: value.clone() for name, value in first.state_tensors().items()})
    more = [value * 1.1 for value in calm(100, 5)]
    assert judge(first, more) == judge(second, more)


def test_without_a_limit_nothing_is_a_spike_and_nothing_is_remembered():
    rule = SpikeRule(0.0, CPU)
    assert not any(judge(rule, [*calm(200), 1e9]))
    assert rule.state_tensors() == {}
