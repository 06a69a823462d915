"""Training batches whose samples depend on (seed, epoch, index) alone.

There is no iterator and so no state to save: step 1,000 is asked for by its number, whether the run was interrupted
before it or not, and whether one process asks for the whole batch or eight ask for an eighth each. Nothing here
touches the global random generators. Tokens come from memory-mapped files: making a batch takes a fraction of a
millisecond, and the system is told of the next batch's places meanwhile, so that the disk has a whole step's time to
read them. Worker processes would only add to that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modelcore.data.shards import TokenSplit
from modelcore.errors import InputError

IGNORED = -100
"""The target of a token that does not count; torch's cross-entropy leaves it out."""


class WindowSampler:
    """Which window of a token sequence each training sample is.

    An epoch cuts the sequence into windows of ``sequence_length`` tokens from a random offset on (plus the one token
    after each, which is its last target), and goes through them in random order, each exactly once. Both the offset
    and the order are drawn anew for every epoch, so the cuts fall elsewhere each time.

    Args:
        n_tokens: Length of the sequence.
        sequence_length: Tokens a window, the context length of training.
        seed: Any non-negative integer.

    Attributes:
        samples_per_epoch: Windows in an epoch; the same for every epoch.

    Raises:
        InputError: If the sequence is too short for one window at every offset.
    """

    def __init__(self, n_tokens: int, sequence_length: int, seed: int) -> None:
        if sequence_length < 1:
            raise InputError(f"sequence_length={sequence_length} must be at least 1")
        if seed < 0:
            raise InputError(f"seed={seed} must not be negative")
        self.n_tokens, self.sequence_length, self.seed = n_tokens, sequence_length, seed
        # One window fewer than would fit: the room left over is what lets the offset reach every phase of a window.
        self.samples_per_epoch = n_tokens // sequence_length - 1
        if self.samples_per_epoch < 1:
            raise _too_small(n_tokens, 1, sequence_length)
        self._epoch = lru_cache(maxsize=2)(
            self._draw_epoch
        )  # a batch may hold the end of one and the start of the next

    def start(self, sample: int) -> int:
        """The first token of a sample; the sample is that one and the ``sequence_length`` after it.

        Args:
            sample: Global number of the sample, from 0; epoch ``e`` begins at ``e * samples_per_epoch``.
        """
        epoch, index = divmod(sample, self.samples_per_epoch)
        offset, order = self._epoch(epoch)
        return offset + int(order[index]) * self.sequence_length

    def _draw_epoch(self, epoch: int) -> tuple[int, npt.NDArray[np.unsignedinteger[Any]]]:
        generator = np.random.default_rng([self.seed, epoch])
        room = self.n_tokens - 1 - self.samples_per_epoch * self.sequence_length
        offset, order = int(generator.integers(room + 1)), generator.permutation(self.samples_per_epoch)
        return offset, order.astype(np.min_scalar_type(self.samples_per_epoch))


class TrainingBatches:
    """Batches of next-token prediction, by number.

    Args:
        split: Where the tokens are.
        sampler: Which window each sample is.
        batch_size: Sequences a step over all ranks together.
        separate_documents: Whether a batch tells the document of each token, for attention that stays inside. The first
            token of a document is then no target of the last of the one before, which knows nothing of it; as with
            Megatron-LM's ``--reset-attention-mask --reset-position-ids --eod-mask-loss``.

    Raises:
        InputError: If an epoch has fewer samples than one batch.
    """

    def __init__(
        self, split: TokenSplit, sampler: WindowSampler, batch_size: int, separate_documents: bool = False
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1")
        if sampler.samples_per_epoch < batch_size:
            raise _too_small(split.n_tokens, batch_size, sampler.sequence_length)
        self.split, self.sampler, self.batch_size = split, sampler, batch_size
        self._bounds = split.document_bounds() if separate_documents else None
        self._asked_for: tuple[int, int, int] | None = None  # the batch whose tokens are being read from disk

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, ...]:
        """The rows of batch ``step`` that belong to ``rank``; those of all ranks, in order, are the whole batch.

        Args:
            step: Number of the batch, from 0.
            rank: Which part.
            world_size: Number of parts; divides ``batch_size``.

        Returns:
            inputs and targets, each int64 of shape (batch_size / world_size, sequence_length); targets are the
            inputs moved on by one token. With ``separate_documents`` targets in another document than their input are
            -100, and a third tensor of this shape has the number of each input's document.

        Raises:
            InputError: If ``world_size`` does not divide ``batch_size``.
        """
        if self.batch_size % world_size:
            raise InputError(f"batch_size={self.batch_size} must be a multiple of the {world_size} processes training")
        length = self.sampler.sequence_length
        if self._asked_for != (step, rank, world_size):
            self._prefetch(step, rank, world_size)  # all at once, then wait for all; not one after the other
        starts = self._starts(step, rank, world_size)
        windows = torch.from_numpy(np.stack([self.split.window(start, length + 1) for start in starts]))  # (B, T+1)
        inputs, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        self._prefetch(step + 1, rank, world_size)
        if self._bounds is None:
            return inputs, targets
        places = np.array(starts)[:, None] + np.arange(length + 1)  # (B, T+1)
        documents = torch.from_numpy(np.searchsorted(self._bounds, places, side="right"))
        targets[documents[:, 1:] != documents[:, :-1]] = IGNORED
        return inputs, targets, documents[:, :-1].contiguous()

    def _starts(self, step: int, rank: int, world_size: int) -> list[int]:
        rows = self.batch_size // world_size
        first = step * self.batch_size + rank * rows
        return [self.sampler.start(sample) for sample in range(first, first + rows)]

    def _prefetch(self, step: int, rank: int, world_size: int) -> None:
        for start in self._starts(step, rank, world_size):
            self.split.prefetch(start, self.sampler.sequence_length + 1)
        self._asked_for = step, rank, world_size


def _too_small(n_tokens: int, batch_size: int, sequence_length: int) -> InputError:
    needed = (batch_size + 1) * sequence_length
    return InputError(
        f"the corpus is too small: {n_tokens:,} training tokens, and a batch of {batch_size} x {sequence_length} "
        f"tokens needs {needed:,}; give more text, or a smaller batch, or a shorter context"
    )
