import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modelcore.training.averaging import WeightAverage

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(5, 7)


def move(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += torch.randn_like(parameter)


def test_the_average_is_torchs_own_once_the_decay_is_reached(layer):
    """From step 10,000 on the decay is 0.9, whatever the step."""
    average = WeightAverage(dict(layer.named_parameters()), 0.9)
    theirs = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(layer)  # torch's first update copies; ours has the weights from the start
    for step in range(20):
        move(layer)
        average.update(10_000 + step, ONE)
        theirs.update_parameters(layer)
    for name, expected in theirs.module.named_parameters():
        torch.testing.assert_close(average.state_tensors()[name], expected.detach(), rtol=1e-5, atol=1e-6)


def test_early_on_the_random_start_is_soon_forgotten(layer):
    average = WeightAverage(dict(layer.named_parameters()), 0.999)
    expected = layer.weight.detach().clone()
    for step in range(30):
        move(layer)
        average.update(step, ONE)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    torch.testing.assert_close(average.state_tensors()["weight"], expected, rtol=1e-5, atol=1e-5)


def test_a_step_left_out_changes_nothing(layer):
    average = WeightAverage(dict(layer.named_parameters()), 0.9)
    move(layer)
    average.update(50, ONE)
    before = {name: value.clone() for name, value in average.state_tensors().items()}
    average.update(51, ZERO)
    assert all(torch.equal(value, before[name]) for name, value in average.state_tensors().items())


def test_the_average_takes_the_weights_place_for_a_while_or_for_good(layer):
    average = WeightAverage(dict(layer.named_parameters()), 0.9)
    move(layer)
    average.update(50, ONE)
    last, mean = layer.weight.detach().clone(), average.state_tensors()["weight"].clone()
    with average.in_place():
        assert torch.equal(layer.weight, mean)
    assert torch.equal(layer.weight, last)
    average.apply()
    assert torch.equal(layer.weight, mean)


def test_without_a_decay_there_is_no_average(layer):
    average = WeightAverage(dict(layer.named_parameters()), 0.0)
    before = layer.weight.detach().clone()
    average.update(0, ONE)
    with average.in_place():
        assert torch.equal(layer.weight, before)
    average.apply()
    assert torch.equal(layer.weight, before)
    assert average.state_tensors() == {}
