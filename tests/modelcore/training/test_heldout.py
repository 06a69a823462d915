import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from modelcore.errors import InputError
from modelcore.training.heldout import Heldout


def test_bits_per_byte_is_the_loss_of_all_windows_over_the_bytes_they_stand_for(make_model, split):
    model = make_model()
    heldout = Heldout(split, sequence_length=16, max_tokens=10**9)
    windows = (split.n_tokens - 1) // 16
    tokens = torch.from_numpy(split.tokens)
    model.eval()
    with torch.no_grad():
        inputs, targets = tokens[: windows * 16].view(windows, 16), tokens[1 : windows * 16 + 1]
        nats = F.cross_entropy(model(inputs).flatten(0, 1), targets).item()
    expected = nats / math.log(2) * split.n_tokens / split.n_bytes
    for batch_size in (7, 10**6):
        assert heldout.bits_per_byte(model, batch_size, nullcontext) == pytest.approx(expected, rel=1e-5)


def test_a_bounded_part_is_spread_over_the_whole_split(split):
    heldout = Heldout(split, sequence_length=16, max_tokens=160)
    windows = (split.n_tokens - 1) // 16
    assert heldout.tokens.shape == (10, 17)
    assert heldout.tokens[0].tolist() == split.window(0, 17).tolist()
    assert heldout.tokens[-1].tolist() == split.window((windows - 1) * 16, 17).tolist()


def test_a_text_shorter_than_a_window_is_one_window(split):
    split.tokens = split.tokens[:5]
    assert Heldout(split, sequence_length=16, max_tokens=100).tokens.shape == (1, 5)


def test_a_text_of_one_token_is_refused(split):
    split.tokens = split.tokens[:1]
    with pytest.raises(InputError, match="held-out text has 1 tokens; at least 2"):
        Heldout(split, sequence_length=16, max_tokens=100)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode_and_no_random_number_is_drawn(make_model, split, training):
    model = make_model().train(training)
    before = torch.get_rng_state()
    Heldout(split, 16, 100).bits_per_byte(model, 4, nullcontext)
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), before)
