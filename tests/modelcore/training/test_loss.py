import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelcore.data.loader import IGNORED
from modelcore.quantization import quantize_model
from modelcore.training import loss as loss_module
from modelcore.training.gradients import accumulate_gradients
from modelcore.training.loss import count_targets, summed_loss

BATCH, TIME, WIDTH, VOCABULARY = 3, 5, 8, 11


@pytest.fixture
def head():
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False)


@pytest.fixture
def hidden():
    return torch.randn(BATCH, TIME, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.fixture
def targets():
    """Every row has another number of targets that count; the last row has none."""
    targets = torch.randint(VOCABULARY, (BATCH, TIME), generator=torch.Generator().manual_seed(2))
    targets[0, 1] = targets[1, 2:] = targets[2, :] = IGNORED
    return targets


def reference(hidden, head, targets):
    return F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("tokens_a_chunk", [1, 4, 100])
def test_loss_and_gradients_equal_cross_entropy_of_the_whole_logits(hidden, head, targets, tokens_a_chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "_CHUNK_ON_CPU", tokens_a_chunk * VOCABULARY)
    expected = reference(hidden, head, targets)
    expected_gradients = torch.autograd.grad(3.0 * expected, [hidden, head.weight])

    found = summed_loss(hidden, head, targets)
    gradients = torch.autograd.grad(3.0 * found, [hidden, head.weight])

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_targets_that_do_not_count_have_no_gradient(hidden, head, targets):
    (gradient,) = torch.autograd.grad(summed_loss(hidden, head, targets), hidden)
    assert (gradient[targets == IGNORED] == 0).all()
    assert (gradient[targets != IGNORED] != 0).any(dim=-1).all()


def test_a_target_whose_probability_vanishes_has_a_finite_loss():
    head, hidden = nn.Linear(1, 2, bias=False), torch.ones(1, 1, 1)
    head.weight = nn.Parameter(torch.tensor([[0.0], [300.0]]))  # the first token's probability is e^-300
    assert summed_loss(hidden, head, torch.tensor([[0]])).item() == pytest.approx(300.0)


def test_targets_are_counted(targets):
    assert count_targets(targets) == 6


def test_without_gradients_the_same_loss_is_found_and_none_is_computed(hidden, head, targets):
    with torch.no_grad():
        loss = summed_loss(hidden, head, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(hidden, head, targets).detach())


def test_a_frozen_head_still_passes_the_gradient_on(hidden, head, targets):
    head.weight.requires_grad_(False)
    expected = torch.autograd.grad(reference(hidden, head, targets), hidden)
    torch.testing.assert_close(torch.autograd.grad(summed_loss(hidden, head, targets), hidden), expected)


class AdaptedHead(nn.Module):
    """A head that is more than a matrix; it counts the tokens it is given at once."""

    out_features = VOCABULARY

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(0.3), nn.Linear(4, VOCABULARY))
        self.most = 0

    def forward(self, x):
        self.most = max(self.most, x.shape[0])
        return self.layers(x)


@pytest.mark.parametrize("tokens_a_chunk", [1, 4, 100])
def test_a_head_of_another_kind_is_run_chunk_by_chunk_too(hidden, targets, tokens_a_chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "_CHUNK_ON_CPU", tokens_a_chunk * VOCABULARY)
    adapted = AdaptedHead().eval()
    expected = reference(hidden, adapted.layers, targets)
    leaves = [hidden, *adapted.parameters()]
    expected_gradients = torch.autograd.grad(3.0 * expected, leaves)

    found = summed_loss(hidden, adapted, targets)
    gradients = torch.autograd.grad(3.0 * found, leaves)

    assert adapted.most == min(tokens_a_chunk, BATCH * TIME)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_head_of_another_kind_needs_no_compiler():
    """Importing torch's takes more than a second, and 120 MiB."""
    code = (
        "import sys, torch\nfrom modelcore.training.loss import summed_loss\n"
        "head = torch.nn.Linear(8, 11)\nhidden = torch.randn(2, 5, 8, requires_grad=True)\n"
        "summed_loss(hidden, head, torch.zeros(2, 5, dtype=torch.long)).backward()\n"
        "assert head.bias.grad is not None\nprint('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_frozen_head_of_another_kind_still_passes_the_gradient_on(hidden, targets):
    adapted = AdaptedHead().eval().requires_grad_(False)
    expected = torch.autograd.grad(reference(hidden, adapted.layers, targets), hidden)
    torch.testing.assert_close(torch.autograd.grad(summed_loss(hidden, adapted, targets), hidden), expected)


def test_what_a_head_drops_is_dropped_in_the_backward_pass_too(hidden, targets, monkeypatch):
    """The gradient of what was computed: the loss moves along it as it says, the same masks drawn again."""
    monkeypatch.setattr(loss_module, "_CHUNK_ON_CPU", 4 * VOCABULARY)
    adapted = AdaptedHead().double()
    hidden = hidden.detach().double().requires_grad_()

    def loss(x):
        torch.manual_seed(0)
        return summed_loss(x, adapted, targets)

    assert torch.autograd.gradcheck(loss, hidden, atol=1e-3, rtol=1e-3, eps=1e-2)  # the loss itself is fp32


def test_under_autocast_the_loss_is_fp32_and_near_the_reference(hidden, head, targets):
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_loss(hidden, head, targets)
    gradients = torch.autograd.grad(loss, [hidden, head.weight])
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32]
    expected = reference(hidden, head, targets)
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)
    expected_gradients = torch.autograd.grad(expected, [hidden, head.weight])
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_a_ragged_batch_in_pieces_has_the_gradient_of_the_whole(make_model, micro_batch_size):
    tokens = torch.randint(61, (8, 17), generator=torch.Generator().manual_seed(3))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    for row in range(8):
        targets[row, 2 * row :] = IGNORED  # the first row has no target that counts, the last one 14
    gradients, losses = [], []
    for size in (0, micro_batch_size):
        model = make_model(dropout=0.0)
        losses.append(accumulate_gradients(model.hidden, model.head, (inputs, targets), size, nullcontext))
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-6)
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)


def test_a_batch_without_any_target_has_loss_zero(make_model):
    model = make_model()
    tokens = torch.zeros(2, 16, dtype=torch.long)
    loss = accumulate_gradients(model.hidden, model.head, (tokens, torch.full_like(tokens, IGNORED)), 0, nullcontext)
    assert loss == 0


def test_a_model_whose_head_is_quantized_too_passes_gradients_on(make_model):
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(4))
    model = quantize_model(make_model(dropout=0.0), "int8", head=True)
    loss = accumulate_gradients(model.hidden, model.head, (tokens[:, :-1], tokens[:, 1:]), 0, nullcontext)
    assert loss.isfinite()
    assert model.norm.weight.grad.norm() > 0
