"""Batches of prompts and replies, in which only the replies are learned, and the loss on replies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from modelcore.data.instructions import Example
from modelcore.data.loader import IGNORED
from modelcore.gptx import GPT, evaluating
from modelcore.training.loss import count_targets, summed_loss

# Batches whose examples are sorted by length together: enough for little padding, few enough for mixed batches.
_POOL = 16


class ReplyBatches:
    """Every example once an epoch, with others of about its length, in an order of the seed and the epoch alone.

    Args:
        examples: What to learn from; at least one.
        batch_size: Examples a step; the last step of an epoch may have fewer.
        pad_id: Fills up the shorter rows of a batch; never a target.
        seed: Decides the order.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, pad_id: int, seed: int) -> None:
        self._examples, self._batch_size, self._pad_id, self._seed = examples, batch_size, pad_id, seed
        self.steps_per_epoch = math.ceil(len(examples) / batch_size)
        self._epoch, self._order = -1, list[list[int]]()

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, each (examples, time) int64; targets that do not count are -100.

        Of several ranks each has every so many of the step's examples. One for which none is left, in a short last
        step of an epoch, has one without targets: it takes part in the step, and adds nothing.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._batches_of(epoch)
        chosen = self._order[place][rank::world_size]
        if not chosen:
            inputs, targets = pad([self._examples[self._order[place][0]]], self._pad_id)
            return inputs, torch.full_like(targets, IGNORED)
        return pad([self._examples[i] for i in chosen], self._pad_id)

    def _batches_of(self, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng([self._seed, epoch])
        order: list[int] = generator.permutation(len(self._examples)).tolist()
        size, batches = self._batch_size, list[list[int]]()
        for start in range(0, len(order), size * _POOL):
            pool = sorted(order[start : start + size * _POOL], key=lambda i: len(self._examples[i].tokens))
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        return [batches[i] for i in generator.permutation(len(batches))]


def pad(examples: Sequence[Example], pad_id: int) -> tuple[Tensor, Tensor]:
    """Examples as one batch: inputs, and the token that follows each, -100 where it is not to be learned.

    Returns:
        Two (examples, longest - 1) int64 tensors.
    """
    longest = max(len(example.tokens) for example in examples)
    inputs = np.full((len(examples), longest - 1), pad_id, dtype=np.int64)
    targets = np.full((len(examples), longest - 1), IGNORED, dtype=np.int64)
    for row, example in enumerate(examples):
        n = len(example.tokens) - 1
        inputs[row, :n] = example.tokens[:-1]
        targets[row, :n] = np.where(example.loss[1:], example.tokens[1:], IGNORED)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


@torch.no_grad()
def reply_loss(model: GPT, examples: Sequence[Example], batch_size: int, pad_id: int) -> float:
    """The mean loss of the tokens of all replies, their ends included, in nats a token.

    Args:
        model: The model; it is left in the mode it was in.
        examples: At least one.
        batch_size: Examples at once.
        pad_id: As in :class:`ReplyBatches`.
    """
    total = torch.zeros((), device=model.device)
    count = torch.zeros((), dtype=torch.long, device=model.device)
    by_length = sorted(examples, key=lambda example: len(example.tokens))
    with evaluating(model):
        for start in range(0, len(by_length), batch_size):
            inputs, targets = (part.to(model.device) for part in pad(by_length[start : start + batch_size], pad_id))
            total += summed_loss(model.hidden(inputs), model.head, targets)
            count += count_targets(targets)
    return (total / count).item()
