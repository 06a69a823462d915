"""Training from disk beside training from memory, and checkpoints beside torch's own."""

import numpy as np
import torch

from bench.gpu import device_checkpoints, training_from_disk
from bench.gpu.training_from_disk import InTurn
from bench.gpu.work import GPT2


class Numbered:
    def __init__(self, sign):
        self.sign = sign

    def batch(self, step, rank=0, world_size=1):
        return (torch.tensor([self.sign * step]),)


def test_the_two_sources_take_turns():
    batches = InTurn((Numbered(1), Numbered(-1)), steps=2)
    assert [int(batches.batch(step)[0]) for step in range(1, 8)] == [1, -2, -3, 4, 5, -6, -7]


def test_rows_set_disk_beside_memory(options):
    both, reading = training_from_disk.rows(options)
    assert (both.benchmark, both.peer, both.unit) == ("training_from_disk", "tokens in memory", "tok/s")
    assert (reading.metric, reading.unit) == ("reading a batch", "ms")


def test_the_file_holds_random_tokens_of_the_vocabulary(options, tmp_path):
    split = training_from_disk._write(tmp_path, GPT2.at(options), 1000)
    tokens = split.window(0, split.n_tokens)
    assert len(tokens) == 4000
    assert len(np.unique(tokens)) > 450
    assert tokens.max() < 500


def test_rows_set_our_checkpoints_beside_torchs(options):
    rows = list(device_checkpoints.rows(options))
    assert [(row.metric, row.unit, row.peer) for row in rows] == [
        ("save", "GB/s", "torch.save"),
        ("load", "GB/s", "torch.load"),
    ]
