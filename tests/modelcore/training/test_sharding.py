"""However a model lies over its ranks, it learns what it would in one process. Real processes, talking through Gloo."""

import re

import numpy as np
import pytest
import torch

from modelcore.errors import InputError
from modelcore.gptx import transformer
from modelcore.training import TrainingSettings, train
from modelcore.training.heldout import Heldout
from modelcore.training.parallel import Ranks
from modelcore.training.sharding import check_alike, shard
from tests.modelcore.training.test_parallel import Text, Watched, make_model, make_settings, on_ranks

# Grouped-query attention, RMSNorm, SwiGLU, RoPE; the vocabulary of 61 is no multiple of anything.
LLAMA = {}
GPT2 = {
    "n_kv_heads": 4,
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "feedforward": "gelu_tanh",
    "attention_bias": True,
    "feedforward_bias": True,
}
BLOOM = GPT2 | {"positions": "alibi", "embedding_norm": True, "tie_embeddings": False}


def learn(ranks, shape, *, poisoned=(), **settings):
    """Trains; returns the history, the steps that were reported, and from the first rank the weights as a whole."""
    settings = make_settings(**settings)
    model = make_model(**shape)
    if poisoned:
        model.embedding.register_forward_hook(
            lambda module, tokens, out: out.masked_fill((tokens[0] == 60)[..., None], float("nan"))
        )
    sharding = shard(model, settings, ranks)
    reports = []
    history = train(
        model,
        Watched(settings, poisoned, None),
        settings,
        bytes_per_token=3.0,
        heldout=None if poisoned else Heldout(Text(), 16, 200),  # 12 windows
        report=lambda step, metrics: reports.append(metrics),
        sharding=sharding,
    )
    whole = sharding.whole_model()
    weights = None if whole is None else {name: p.detach().numpy() for name, p in whole.named_parameters()}
    return history, reports, weights


def learn_all(ranks, cases):
    return [learn(ranks, shape, **settings) for shape, settings in cases]


def check_equal(cases, size):
    """That each case gives on ``size`` ranks what its shape and settings give in one process."""
    results = on_ranks(size, learn_all, cases)
    alone = {}
    for number, (shape, settings) in enumerate(cases):
        placed = ("parallel", "shard_size", "tensor_parallel", "recompute", "micro_batch_size")
        rest = {key: value for key, value in settings.items() if key not in placed}
        key = repr((shape, rest))
        if key not in alone:
            alone[key] = learn(Ranks(), shape, **rest)
        expected, _, expected_weights = alone[key]
        history, reports, weights = results[0][number]
        losses = expected.loss_curve["loss"]
        np.testing.assert_allclose(history.loss_curve["loss"], losses, rtol=0, atol=1e-5, err_msg=repr(cases[number]))
        assert history.tokens == expected.tokens
        if not rest.get("poisoned"):
            assert losses[-1] < losses[0] - 0.2  # something was learned
            bits = expected.heldout_curve["bits_per_byte"]
            assert history.heldout_curve["bits_per_byte"] == pytest.approx(bits, abs=1e-5)
        assert history.skipped_steps == expected.skipped_steps == len(rest.get("poisoned", ()))
        assert weights.keys() == expected_weights.keys()
        for name, weight in weights.items():
            np.testing.assert_allclose(weight, expected_weights[name], rtol=0, atol=2e-4, err_msg=name)
        assert len(reports) == history.steps + len(history.heldout_curve.get("step", ()))
        for other, silent, nothing in (result[number] for result in results[1:]):
            assert other.loss_curve["loss"] == history.loss_curve["loss"]  # bit for bit
            assert silent == []
            assert nothing is None


FSDP, TP = {"parallel": "fsdp"}, {"tensor_parallel": 2}
FIFTY = {"steps": 50, "ema_decay": 0.9, "eval_every": 25}


def test_two_ranks_in_shards_or_with_shared_matrices_follow_the_losses_of_one():
    check_equal(
        [
            (LLAMA, FIFTY),
            (LLAMA, FIFTY | FSDP),
            (LLAMA, FIFTY | TP),
            (GPT2, FIFTY | FSDP),
            (GPT2, FIFTY | TP),
            (LLAMA, {"steps": 8, "poisoned": (2, 3, 6)} | FSDP),
            (BLOOM, {"steps": 10} | TP),
        ],
        2,
    )


def test_in_bf16_two_ranks_follow_the_losses_of_one_within_its_rounding():
    cases = [(LLAMA, {"steps": 20, "precision": "bf16"} | placed) for placed in ({}, FSDP, TP)]
    expected, fp32 = (
        learn(Ranks(), LLAMA, steps=20, precision=each)[0].loss_curve["loss"] for each in ("bf16", "fp32")
    )
    assert expected != fp32
    for history, _, _ in on_ranks(2, learn_all, cases)[0]:
        np.testing.assert_allclose(history.loss_curve["loss"], expected, rtol=0, atol=5e-3)


def started_otherwise(ranks, changes, digests):
    """What a process says whose settings or tokens are not the first one's; the others find nothing wrong."""
    try:
        check_alike(make_settings(**changes[ranks.rank]), digests[ranks.rank], ranks)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(
    ("changes", "digests", "said"),
    [
        ([{}, {}], "aa", None),
        ([{"steps": 12}, {"steps": 8}], "aa", "steps is 8 here and 12 on the first process"),
        ([{"betas": (0.9, 0.95)}, {"betas": (0.9, 0.99)}], "aa", "betas is [0.9, 0.99] here and [0.9, 0.95] on the"),
        ([{}, FSDP], "aa", "parallel is 'fsdp' here and 'ddp' on the first process"),
        ([{}, {"precision": "bf16"}], "aa", "precision is 'bf16 (bf16)' here and 'fp32 (fp32)' on the first process"),
        ([{}, {}], "ab", "tokens is 'b' here and 'a' on the first process"),
    ],
)
def test_a_process_that_was_started_otherwise_says_so_instead_of_waiting(changes, digests, said):
    first, other = on_ranks(2, started_otherwise, changes, digests)
    assert first is None
    assert (other is None) == (said is None)
    assert said is None or said in other


@pytest.mark.slow
def test_four_ranks_laid_out_in_any_way_follow_the_losses_of_one():
    hybrid = FSDP | {"shard_size": 2}
    check_equal(
        [
            (LLAMA, FIFTY),
            (LLAMA, FIFTY | FSDP | {"recompute": "blocks"}),
            (LLAMA, FIFTY | hybrid | {"micro_batch_size": 1}),
            (LLAMA, FIFTY | TP),
            (LLAMA, FIFTY | TP | FSDP | {"micro_batch_size": 2}),
            (GPT2, FIFTY | hybrid),
            (GPT2, FIFTY | {"tensor_parallel": 4, "recompute": "blocks"}),
            (GPT2, FIFTY | TP | FSDP),
        ],
        4,
    )


@pytest.mark.parametrize(
    ("size", "shape", "settings", "said"),
    [
        (3, LLAMA, TP, "tensor_parallel is 2, and 3 processes train; their number must be a multiple"),
        (1, LLAMA, TP, "tensor_parallel is 2, and 1 processes train; their number must be a multiple"),
        (4, LLAMA, {"tensor_parallel": 4}, "tensor_parallel is 4, which does not divide the model's n_kv_heads of 2"),
        (3, GPT2, {"tensor_parallel": 3}, "tensor_parallel is 3, which does not divide the model's n_heads of 4"),
        (4, GPT2 | {"d_ff": 50}, {"tensor_parallel": 4}, "does not divide the model's d_ff of 50"),
        (2, LLAMA | {"dropout": 0.1}, TP, "the model has a dropout of 0.1"),
        (4, LLAMA, FSDP | {"shard_size": 3}, "shard_size is 3, and 4 ranks have rows of their own; it must divide"),
        (4, LLAMA, FSDP | TP | {"shard_size": 4}, "shard_size is 4, and 2 ranks have rows of their own"),
        (2, LLAMA, FSDP | {"optimizer": "muon"}, "optimizer is muon, which needs whole matrices"),
        (2, LLAMA, TP | {"optimizer": "muon"}, "optimizer is muon, which needs whole matrices"),
    ],
)
def test_what_the_ranks_cannot_share_is_said_in_one_line(size, shape, settings, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        shard(make_model(**shape), make_settings(**settings), Ranks(size=size))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parallel": "zero"}, "parallel is 'zero'; it must be one of: ddp, fsdp"),
        ({"shard_size": 2}, "shard_size is 2 with parallel ddp"),
        ({"parallel": "fsdp", "shard_size": 1}, "shard_size is 1 with parallel fsdp; it is for parallel fsdp, where"),
        ({"shard_size": -1}, "shard_size is -1"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(InputError, match=re.escape(said)):
        TrainingSettings(steps=1, batch_size=1, sequence_length=1, learning_rate=1e-3, **settings)


def test_one_process_alone_has_nothing_to_shard():
    history, _, weights = learn(Ranks(), LLAMA, parallel="fsdp")
    expected, _, theirs = learn(Ranks(), LLAMA)
    assert history.loss_curve["loss"] == expected.loss_curve["loss"]
    assert all(np.array_equal(weights[name], theirs[name]) for name in theirs)


def learn_compiled(ranks, cases):
    """What :func:`learn_all` gives, without and with compiled blocks, and how many graphs were compiled."""
    from torch._dynamo.testing import CompileCounterWithBackend  # imports the compiler

    as_they_are = learn_all(ranks, cases)
    compiler = CompileCounterWithBackend("aot_eager")
    run, transformer._run = transformer._run, torch.compile(transformer._run, backend=compiler)
    try:
        return as_they_are, learn_all(ranks, cases), compiler.frame_count
    finally:
        transformer._run = run
        torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_blocks_learn_the_same_in_shards_and_with_shared_matrices():
    """Traced by the compiler, backward pass included; not run through its code generator, which takes minutes here."""
    cases = [(LLAMA, {"steps": 4} | layout) for layout in (FSDP, TP)]
    for as_they_are, compiled, graphs in on_ranks(2, learn_compiled, cases):
        assert graphs > len(cases)  # a block and a norm each, at least
        for (expected, *_), (history, *_) in zip(as_they_are, compiled, strict=True):
            losses = expected.loss_curve["loss"]
            assert losses[-1] < losses[0]
            np.testing.assert_allclose(history.loss_curve["loss"], losses, rtol=0, atol=1e-5)
