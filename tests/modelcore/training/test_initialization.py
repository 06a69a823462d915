"""Weights of a new model, drawn by the processes that it lies on: those of one process, and nowhere the whole."""

import re
from pathlib import Path

import pytest
import torch

from modelcore.gptx import GPT, GPTConfig
from modelcore.training.initialization import DeferredModel
from modelcore.training.sharding import build, shard
from tests.modelcore.training.test_parallel import make_model, make_settings, on_ranks
from tests.modelcore.training.test_sharding import BLOOM, FSDP, GPT2, LLAMA, TP

SEED = 11
HYBRID, BOTH = FSDP | {"shard_size": 2}, FSDP | TP


def built(ranks, cases):
    """Of each model the weights as a whole, its buffers, the generator's next number, and what is tied."""
    found = []
    for shape, settings in cases:
        config = make_model(**shape).config
        sharding = build(config, make_settings(seed=SEED, **settings), ranks)
        drawn = torch.rand(()).item()
        model, whole = sharding.model, sharding.whole_model()
        tied = model.head.weight is model.embedding.weight
        padding = [rows[61:] for rows in (model.embedding.weight, model.head.weight) if not hasattr(rows, "to_local")]
        assert not any(rows.count_nonzero() for rows in padding)
        assert not any(parameter.is_meta for parameter in model.parameters())
        weights = None if whole is None else {name: tensor.numpy() for name, tensor in whole.state_dict().items()}
        buffers = {name: buffer.numpy() for name, buffer in model.named_buffers() if name != "slopes"}
        found.append((weights, buffers, drawn, tied))
    return found


def check_built(cases, size):
    for rank, results in enumerate(on_ranks(size, built, cases)):
        for (shape, _), (weights, buffers, drawn, tied) in zip(cases, results, strict=True):
            config = make_model(**shape).config
            torch.manual_seed(SEED)
            expected = GPT(config)
            assert drawn == torch.rand(()).item()
            assert tied == config.tie_embeddings
            for name, buffer in buffers.items():
                assert torch.equal(torch.from_numpy(buffer), expected.get_buffer(name)), name
            assert (weights is None) == (rank > 0)
            if weights is not None:
                theirs = expected.state_dict()
                assert weights.keys() == theirs.keys()
                for name, weight in weights.items():
                    assert torch.equal(torch.from_numpy(weight), theirs[name]), (shape, name)


def test_two_processes_draw_the_weights_of_one_bit_for_bit():
    padded = {"pad_vocab_to_multiple": 64}
    check_built([(LLAMA, {}), (LLAMA, FSDP | padded), (GPT2, FSDP), (BLOOM, TP | padded), (LLAMA, TP)], 2)


@pytest.mark.slow
def test_so_do_four_in_every_layout():
    padded = {"pad_vocab_to_multiple": 128}
    check_built([(shape, layout | padded) for shape in (LLAMA, BLOOM) for layout in (FSDP, HYBRID, TP, BOTH)], 4)


def test_one_process_draws_what_the_constructor_does():
    check_built([(LLAMA, FSDP), (BLOOM, {"pad_vocab_to_multiple": 64})], 1)


# --- memory -----------------------------------------------------------------------------------------------------------

LARGE = GPTConfig(vocab_size=4096, context_length=16, n_layers=12, d_model=512, n_heads=8, n_kv_heads=8, d_ff=1408)


SIZE = sum(parameter.nbytes for parameter in DeferredModel(LARGE).model.parameters()) / 2**20


def megabytes(what):
    return int(re.search(rf"{what}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def peak_of(task):
    """By how much this process outgrows, at the task's peak, what it was before, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew, see proc(5)
    before = megabytes("VmRSS")
    task()
    return megabytes("VmHWM") - before


def peak_of_building(ranks, layout, at_once):
    settings = make_settings(**layout)
    build(make_model().config, settings, ranks)  # imports what it needs
    return peak_of(lambda: shard(GPT(LARGE), settings, ranks) if at_once else build(LARGE, settings, ranks))


@pytest.mark.parametrize("layout", [FSDP, pytest.param(TP, marks=pytest.mark.slow)])
def test_no_process_ever_has_memory_for_the_whole_model(layout):
    assert max(on_ranks(2, peak_of_building, layout, False)) < 0.75 * SIZE  # its half, and one matrix
    assert min(on_ranks(2, peak_of_building, layout, True)) > SIZE  # so much would it be otherwise
