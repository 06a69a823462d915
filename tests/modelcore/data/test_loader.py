"""The loader's promise: which tokens a sample holds depends on (seed, epoch, index) and on nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcore.data.loader import TrainingBatches, WindowSampler
from modelcore.errors import InputError


class Counting:
    """A split whose token number i is i, so that a batch tells where it was taken from."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def window(self, start: int, length: int) -> np.ndarray:
        assert start >= 0
        assert start + length <= self.n_tokens
        return np.arange(start, start + length, dtype=np.int64)

    def prefetch(self, start: int, length: int) -> None:
        assert start >= 0
        assert start + length <= self.n_tokens


lengths = st.integers(1, 40)
seeds = st.integers(0, 2**40)


@given(length=lengths, windows=st.integers(2, 60), extra=st.integers(0, 39), seed=seeds, epoch=st.integers(0, 5))
def test_an_epoch_holds_each_window_exactly_once(length, windows, extra, seed, epoch):
    sampler = WindowSampler(length * windows + extra % length, length, seed)
    size = sampler.samples_per_epoch
    starts = sorted(sampler.start(epoch * size + index) for index in range(size))
    assert np.diff(starts).tolist() == [length] * (size - 1), "neither gap nor overlap"
    assert starts[0] >= 0
    assert starts[-1] + length < sampler.n_tokens, "the last target is inside too"


@settings(max_examples=30)
@given(
    length=lengths,
    rows=st.integers(1, 3),
    world=st.sampled_from([1, 2, 3, 4, 6]),
    step=st.integers(0, 50),
    seed=seeds,
)
def test_any_number_of_processes_sees_the_same_batch(length, rows, world, step, seed):
    split = Counting(length * 40)
    batches = TrainingBatches(split, WindowSampler(split.n_tokens, length, seed), batch_size=12 * rows)
    whole = batches.batch(step)
    parts = [batches.batch(step, rank, world) for rank in range(world)]
    for position in range(2):
        assert torch.equal(whole[position], torch.cat([part[position] for part in parts]))


def test_targets_are_the_inputs_moved_on_by_one_token():
    split = Counting(1000)
    inputs, targets = TrainingBatches(split, WindowSampler(1000, 16, 0), 4).batch(3)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_the_disk_is_told_of_a_batch_while_the_one_before_is_in_work(rank, world):
    class Recording(Counting):
        told, read = [], []

        def prefetch(self, start, length):
            self.told.append((start, length))

        def window(self, start, length):
            self.read.append((start, length))
            return super().window(start, length)

    split, rows = Recording(1000), 4 // world
    batches = TrainingBatches(split, WindowSampler(1000, 16, 0), 4)
    batches.batch(57, rank, world)  # a run that is taken up: its first batch is told of at once
    assert split.read == split.told[:rows]
    assert len(split.told) == 2 * rows
    split.read.clear()
    batches.batch(58, rank, world)
    assert split.read == split.told[rows : 2 * rows]
    assert len(split.told) == 3 * rows


def test_every_epoch_cuts_elsewhere_and_in_another_order():
    sampler = WindowSampler(10_000, 100, seed=1)
    size = sampler.samples_per_epoch
    epochs = [[sampler.start(epoch * size + index) for index in range(size)] for epoch in range(20)]
    assert len({min(epoch) for epoch in epochs}) > 10, "the offsets differ"
    orders = {tuple(np.argsort(epoch)) for epoch in epochs}
    assert len(orders) == 20


def test_over_many_epochs_every_token_is_trained_on():
    sampler = WindowSampler(47, 10, seed=0)
    size = sampler.samples_per_epoch
    seen = {
        sampler.start(epoch * size + index) + place
        for epoch in range(200)
        for index in range(size)
        for place in range(11)
    }
    assert seen == set(range(47))


def test_another_seed_gives_another_order():
    first, second = (WindowSampler(10_000, 10, seed) for seed in (0, 1))
    assert [first.start(i) for i in range(20)] != [second.start(i) for i in range(20)]


def test_asking_in_another_order_or_from_a_new_sampler_changes_nothing():
    sampler = WindowSampler(5000, 10, seed=3)
    forward = [sampler.start(sample) for sample in range(2000)]
    again = WindowSampler(5000, 10, seed=3)
    assert [again.start(sample) for sample in reversed(range(2000))] == forward[::-1]


def test_the_global_random_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    TrainingBatches(Counting(1000), WindowSampler(1000, 10, 0), 4).batch(100)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_a_corpus_too_small_for_one_batch_says_how_much_is_needed():
    split = Counting(650)
    sampler = WindowSampler(650, 64, seed=0)
    with pytest.raises(InputError, match=r"650 training tokens, and a batch of 16 x 64 tokens needs 1,088"):
        TrainingBatches(split, sampler, batch_size=16)
    TrainingBatches(Counting(1088), WindowSampler(1088, 64, seed=0), batch_size=16)  # and that is enough


def test_a_corpus_too_small_for_one_window_says_how_much_is_needed():
    with pytest.raises(InputError, match=r"100 training tokens, and a batch of 1 x 64 tokens needs 128"):
        WindowSampler(100, 64, seed=0)


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused():
    batches = TrainingBatches(Counting(1000), WindowSampler(1000, 10, 0), 4)
    with pytest.raises(InputError, match="batch_size=4 must be a multiple of the 3 processes"):
        batches.batch(0, 0, 3)


class InDocuments(Counting):
    """A counting split cut into documents."""

    def __init__(self, n_tokens, bounds):
        super().__init__(n_tokens)
        self._bounds = np.array(bounds, dtype=np.int64)

    def document_bounds(self):
        return self._bounds


@settings(max_examples=30)
@given(cuts=st.sets(st.integers(1, 599), max_size=60), seed=seeds, step=st.integers(0, 20))
def test_separate_documents_are_told_and_none_predicts_the_first_token_of_the_next(cuts, seed, step):
    bounds = [0, *sorted(cuts), 600]
    split = InDocuments(600, bounds)
    sampler = WindowSampler(600, 16, seed)
    plain_inputs, plain_targets = TrainingBatches(split, sampler, 4).batch(step)
    inputs, targets, documents = TrainingBatches(split, sampler, 4, separate_documents=True).batch(step)
    assert torch.equal(inputs, plain_inputs)
    assert documents.shape == inputs.shape
    of = {token: number for number in range(1, len(bounds)) for token in range(bounds[number - 1], bounds[number])}
    for token, target, plain, document in zip(
        inputs.flatten().tolist(),
        targets.flatten().tolist(),
        plain_targets.flatten().tolist(),
        documents.flatten().tolist(),
        strict=True,
    ):
        assert document == of[token]
        assert target == (plain if of[plain] == of[token] else -100)
