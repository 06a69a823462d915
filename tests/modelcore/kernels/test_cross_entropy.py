"""The kernel of the loss against torch's own, on a GPU or in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

from modelcore.data.loader import IGNORED
from modelcore.kernels import cross_entropy
from modelcore.kernels.cross_entropy import cross_entropy_

ROWS, VOCABULARY = 6, 41
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=[8, 64], ids=["blocks smaller than a row", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_BLOCK", request.param)


def logits_and_targets(dtype, columns):
    generator = torch.Generator().manual_seed(0)
    logits = (7.0 * torch.randn(ROWS, columns, generator=generator)).to(dtype)
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    targets[0], targets[1], targets[2] = VOCABULARY - 1, 0, IGNORED
    return logits.to(DEVICE), targets.to(DEVICE)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.usefixtures("block")
def test_losses_and_gradients_are_torchs(dtype, tolerance, padding):
    """The losses in fp32 whatever the logits' type; the gradients up to one rounding to it."""
    logits, targets = logits_and_targets(dtype, VOCABULARY + padding)
    reference = logits[:, :VOCABULARY].float().requires_grad_()
    expected = F.cross_entropy(reference, targets, ignore_index=IGNORED, reduction="none")
    expected.sum().backward()

    losses = cross_entropy_(logits, targets, VOCABULARY, IGNORED, with_gradient=True)

    torch.testing.assert_close(losses, expected.detach(), rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(logits[:, :VOCABULARY].float(), reference.grad, rtol=0, atol=tolerance)
    assert (logits[:, VOCABULARY:] == 0).all()
    assert (logits[2] == 0).all()
    assert losses[2] == 0


@pytest.mark.usefixtures("block")
def test_without_gradient_the_logits_stay():
    logits, targets = logits_and_targets(torch.float32, VOCABULARY)
    before = logits.clone()
    losses = cross_entropy_(logits, targets, VOCABULARY, IGNORED, with_gradient=False)
    assert torch.equal(logits, before)
    torch.testing.assert_close(
        losses, F.cross_entropy(before, targets, ignore_index=IGNORED, reduction="none"), rtol=1e-6, atol=2e-6
    )


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_no_number_shows_in_the_loss_of_its_row_alone(bad):
    logits, targets = logits_and_targets(torch.float32, VOCABULARY)
    logits[3, 17] = bad
    losses = cross_entropy_(logits, targets, VOCABULARY, IGNORED, with_gradient=True)
    assert losses.isfinite().tolist() == [True, True, True, False, True, True]


@pytest.mark.usefixtures("block")
def test_logits_far_from_zero_neither_overflow_nor_vanish():
    logits, targets = logits_and_targets(torch.float32, VOCABULARY)
    logits += torch.tensor([1e4, -1e4, 0.0, 3e37, -3e37, 88.0], device=DEVICE)[:, None]
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    losses = cross_entropy_(logits, targets, VOCABULARY, IGNORED, with_gradient=True)
    torch.testing.assert_close(losses, expected)
