"""The loss curves: the reference is plain PyTorch, and the library's loop in fp32 gives the same."""

import contextlib
import dataclasses
import json

import pytest
import torch

from bench.gpu import curves, gpt2_loss_curves, tinyllama_loss_curves
from bench.gpu.training import RandomTokens
from bench.gpu.work import GPT2, TINYLLAMA, build
from modelcore.training import TrainingSettings


@pytest.mark.parametrize("work", [GPT2, TINYLLAMA])
def test_the_loop_in_fp32_follows_the_reference(work, options):
    work = work.at(options)
    batches = RandomTokens(work)
    settings = TrainingSettings(
        steps=20,
        batch_size=4,
        sequence_length=32,
        learning_rate=3e-3,
        warmup_steps=3,
        precision="fp32",
        log_every=1,
        pad_vocab_to_multiple=128,
    )
    cpu = torch.device("cpu")
    ours = curves._our_curve(build(work.config, cpu), batches, settings)
    reference = curves.plain_curve(build(work.config, cpu), batches, settings, contextlib.nullcontext)
    assert ours == pytest.approx(reference, abs=1e-4)
    assert reference[-1] < reference[0] - 0.5


@pytest.mark.parametrize("benchmark", [gpt2_loss_curves, tinyllama_loss_curves])
def test_rows_tell_how_far_ours_is_from_the_reference_beside_rounding_and_chance(benchmark, options, tmp_path):
    name = benchmark.__name__.rpartition(".")[2]
    rows = list(benchmark.rows(dataclasses.replace(options, folder=tmp_path)))
    assert {row.benchmark for row in rows} == {name}
    assert [row.peer for row in rows] == [curves.ROUNDED] * 3 + [""] * 3
    saved = json.loads((tmp_path / f"{name}.curves.json").read_text())
    assert saved.keys() == {curves.OURS, curves.REFERENCE, curves.ROUNDED, curves.REORDERED}
    assert {len(curve) for curve in saved.values()} == {8}
    largest = max(abs(one - other) for one, other in zip(saved[curves.OURS], saved[curves.REFERENCE], strict=True))
    assert rows[0].value == pytest.approx(max(largest, 1e-6), rel=1e-5)
    assert rows[3].metric == "largest difference from fp32, of another order of the text"
    assert rows[3].value > 1e-3  # other batches have another loss


def test_distances_are_those_of_the_curves():
    apart = curves._apart([5.0, 4.0] + [3.0] * 18, [5.0, 4.5] + [3.0] * 16 + [3.1, 3.1])
    assert list(apart.values()) == pytest.approx([0.5, 0.7 / 20, 0.1])


def test_no_difference_is_told_as_the_least_that_fp32_can_tell():
    assert set(curves._apart([1.0], [1.0]).values()) == {1e-6}
