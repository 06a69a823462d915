"""What the cache stores is read back: exactly, rounded to half precision, or in int8 with the stated error."""

import pytest
import torch

from modelcore.gptx.kv_storage import KVStorage


def stored(vectors, dtype):
    """A storage of eight slots with four ``vectors`` in slots 1, 3, 5 and 7, row by row in another order."""
    storage = KVStorage((2, 3, 8, vectors.shape[-1]), dtype, "cpu")
    slots = torch.tensor([[1, 3, 5, 7], [7, 5, 3, 1]])
    storage.write(slots, vectors)
    everything = storage.read(8, torch.float32)
    return torch.stack([everything[row][:, slots[row]] for row in range(2)]), everything


@pytest.fixture
def vectors():
    """Vectors whose sizes differ a thousandfold between tokens and heads, one of them zero."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 3, 4, 16, generator=generator)
    vectors *= 10 ** (3 * torch.rand(2, 3, 4, 1, generator=generator) - 1.5)
    vectors[1, 2, 3] = 0
    return vectors


def test_fp32_comes_back_bit_for_bit_and_other_slots_stay_empty(vectors):
    back, everything = stored(vectors, torch.float32)
    assert torch.equal(back, vectors)
    assert everything[:, :, ::2].abs().max() == 0


def test_half_precision_is_rounded_once(vectors):
    assert torch.equal(stored(vectors, torch.bfloat16)[0], vectors.bfloat16().float())


def test_int8_is_off_by_at_most_the_254th_part_of_its_own_tokens_and_heads_largest_number(vectors):
    back, _ = stored(vectors, torch.int8)
    bound = vectors.abs().amax(-1, keepdim=True) / 254
    assert ((back - vectors).abs() <= bound * (1 + 1e-5)).all()
    assert (back - vectors).abs().max() > 0
    assert torch.equal(back[1, 2, 3], torch.zeros(16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_rounding_alone_gives_what_storing_and_reading_gives(vectors, dtype):
    storage = KVStorage((2, 3, 8, 16), dtype, "cpu")
    assert torch.equal(storage.rounded(vectors), stored(vectors, dtype)[0])


def test_int8_takes_little_more_than_a_quarter_of_fp32s_memory():
    fp32, int8 = (KVStorage((2, 3, 8, 64), dtype, "cpu").nbytes for dtype in (torch.float32, torch.int8))
    assert fp32 == 2 * 3 * 8 * 64 * 4
    assert int8 == 2 * 3 * 8 * (64 + 4)
