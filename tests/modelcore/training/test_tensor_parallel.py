"""Shared matrices: which part of a whole tensor a rank holds."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from modelcore.training.tensor_parallel import Cut


@st.composite
def cuts(draw):
    """A whole tensor, the cuts of all ranks, and the dimension."""
    ranks = draw(st.integers(1, 4))
    sizes = [ranks * n for n in draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))]
    dim = draw(st.integers(0, 1))
    other = draw(st.integers(1, 3))
    shape = (sum(sizes), other) if dim == 0 else (other, sum(sizes))
    whole = torch.arange(sum(sizes) * other).reshape(shape)
    return whole, [Cut.equal(sizes, dim, rank, ranks) for rank in range(ranks)]


@given(cuts())
def test_the_parts_of_all_ranks_are_the_whole_and_nothing_twice(given_cuts):
    whole, all_cuts = given_cuts
    written = torch.zeros_like(whole)
    found = torch.full_like(whole, -1)
    for cut in all_cuts:
        part = cut.of(whole)
        assert cut.whole_shape(part.shape) == whole.shape
        for offset, box in cut.boxes((0, 0), part).items():
            place = tuple(slice(o, o + n) for o, n in zip(offset, box.shape, strict=True))
            found[place] = box
            written[place] += 1
    assert torch.equal(found, whole)
    assert written.eq(1).all()


@given(cuts(), st.integers(1, 4))
def test_shards_of_a_part_lie_where_their_numbers_are_in_the_whole(given_cuts, shards):
    """As with FSDP2 over shared matrices: a shard's rows may come from several spans of the whole."""
    whole, all_cuts = given_cuts
    for cut in all_cuts:
        part = cut.of(whole)
        start, seen = 0, 0
        for rows in torch.chunk(part, shards):
            for offset, box in cut.boxes((start, 0), rows).items():
                place = tuple(slice(o, o + n) for o, n in zip(offset, box.shape, strict=True))
                assert torch.equal(whole[place], box)
                assert box.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
                seen += box.numel()
            start += rows.shape[0]
        assert seen == part.numel()


def test_fused_matrices_are_shared_part_by_part():
    """Query rows 0 … 7, key 8 … 11, value 12 … 15: the second of two ranks has the second half of each."""
    cut = Cut.equal([8, 4, 4], 0, 1, 2)
    assert cut.of(torch.arange(16)[:, None])[:, 0].tolist() == [4, 5, 6, 7, 10, 11, 14, 15]
