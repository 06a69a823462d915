"""Several processes train as one would: real ones, forked from one that has imported torch, talking through Gloo."""

import contextlib
import dataclasses
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist

from modelcore.data.loader import IGNORED, TrainingBatches, WindowSampler
from modelcore.gptx import GPT, GPTConfig
from modelcore.training import CheckpointPlace, TrainingSettings, train
from modelcore.training.gradients import accumulate_gradients
from modelcore.training.heldout import Heldout
from modelcore.training.local import local
from modelcore.training.parallel import GradientSum, Ranks, join
from modelcore.training.sharding import shard

SERVER = multiprocessing.get_context("forkserver")
# The last two are what torch imports late, when an optimizer is made.
SERVER.set_forkserver_preload(["modelcore.stages.pretrain", "torch._dynamo", "torch.distributed.fsdp"])


def as_rank(rank, size, port, task, arguments, options):
    """What torchrun tells a process, then the task, which is given its place among the others."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there already, as with torchrun
    }
    with join(torch.device("cpu")) as ranks:
        return task(ranks, *arguments, **options)


def on_ranks(size, task, *arguments, **options):
    """The results of a task on each of ``size`` ranks."""
    if size == 1:
        return [task(Ranks(), *arguments, **options)]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ProcessPoolExecutor(size, mp_context=SERVER) as pool:
        futures = [pool.submit(as_rank, rank, size, store.port, task, arguments, options) for rank in range(size)]
        return [future.result(timeout=120) for future in futures]


def make_model(**changes):
    torch.manual_seed(7)
    fields = {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "tie_embeddings": True}
    return GPT(GPTConfig(vocab_size=61, context_length=16, **(fields | changes)))


class Text:
    """A text with something to learn, in memory."""

    n_tokens, n_bytes = 4000, 12_000

    def __init__(self):
        generator = np.random.default_rng(0)
        steps = np.where(generator.random(self.n_tokens) < 0.9, 1, generator.integers(0, 61, self.n_tokens))
        self.tokens = np.cumsum(steps) % 61

    def window(self, start, length):
        return self.tokens[start : start + length].copy()

    def prefetch(self, start, length):
        pass


def make_settings(**changes):
    fields = {
        "steps": 12,
        "batch_size": 8,
        "sequence_length": 16,
        "learning_rate": 3e-3,
        "precision": "fp32",  # some CPUs would round to bf16, and what is compared here is compared closely
        "warmup_steps": 2,
        "log_every": 1,
    }
    return TrainingSettings(**(fields | changes))


class KilledError(Exception):
    """Stands for the end of all processes."""


class Watched:
    """Batches that remember what they gave, make the loss NaN in some steps on one rank alone, or end the run."""

    def __init__(self, settings, poisoned, killed_at):
        sampler = WindowSampler(Text.n_tokens, settings.sequence_length, settings.seed)
        self.batches = TrainingBatches(Text(), sampler, settings.batch_size)
        self.poisoned, self.killed_at, self.seen = poisoned, killed_at, {}

    def batch(self, step, rank=0, world_size=1):
        if step == self.killed_at:
            raise KilledError
        inputs, targets = self.batches.batch(step, rank, world_size)
        if self.poisoned:
            inputs = inputs.clamp_max(59)
        self.seen[step] = inputs.clone()
        if step in self.poisoned and rank == world_size - 1:
            inputs[0, 0] = 60
        return inputs, targets


# --- the gradient of a step -------------------------------------------------------------------------------------------


def ragged():
    tokens = torch.randint(61, (8, 17), generator=torch.Generator().manual_seed(3))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    for row in range(8):
        targets[row, 2 * row :] = IGNORED  # the first row has no target that counts, the last one 14
    return inputs, targets


def gradient_of_a_ragged_batch(ranks, micro_batch_size, bucket_bytes):
    model = make_model()
    rows = slice(ranks.rank * 8 // ranks.size, (ranks.rank + 1) * 8 // ranks.size)
    batch = [part[rows] for part in ragged()]
    sent = []

    class Watched(dist.ProcessGroup):
        def allreduce_coalesced(self, tensors):
            sent.append(sum(tensor.numel() for tensor in tensors))
            return dist.group.WORLD.allreduce_coalesced(tensors)

    group = Watched(ranks.rank, ranks.size) if ranks.size > 1 else None
    gradients = GradientSum(list(model.parameters()), dataclasses.replace(ranks, group=group), bucket_bytes)
    loss = accumulate_gradients(model.hidden, model.head, batch, micro_batch_size, contextlib.nullcontext, gradients)
    return loss.item(), [parameter.grad.numpy() for parameter in model.parameters()], sent


@pytest.mark.parametrize(("size", "micro_batch_size"), [(2, 0), (4, 1)])
def test_a_ragged_batch_on_ranks_and_in_pieces_has_the_gradient_of_the_whole(size, micro_batch_size):
    ((expected_loss, expected, _),) = on_ranks(1, gradient_of_a_ragged_batch, 0, 1)
    results = on_ranks(size, gradient_of_a_ragged_batch, micro_batch_size, 8 << 10)
    for loss, gradients, sent in results:
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        for ours, theirs in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        # Each parameter travels once, however many pieces there are.
        assert sum(sent) == sum(parameter.numel() for parameter in make_model().parameters())
        assert len(sent) > 2
    for loss, gradients, _ in results[1:]:
        assert loss == results[0][0]
        assert all(np.array_equal(a, b) for a, b in zip(gradients, results[0][1], strict=True))


# --- a whole run ------------------------------------------------------------------------------------------------------


def run(ranks, settings, folder=None, *, poisoned=(), killed_at=None, dropout=0.0):
    """Trains on a rank; returns weights, history (None if killed), batches by step, and the steps reported."""
    model = make_model(dropout=dropout)
    model.embedding.register_forward_hook(
        lambda module, tokens, out: out.masked_fill((tokens[0] == 60)[..., None], float("nan")) if poisoned else out
    )
    batches = Watched(settings, poisoned, killed_at)
    history, reports = None, []
    with contextlib.suppress(KilledError):
        history = train(
            model,
            batches,
            settings,
            bytes_per_token=3.0,
            heldout=None if poisoned else Heldout(Text(), 16, 200),
            checkpoints=CheckpointPlace(folder, {}) if folder is not None else None,
            report=lambda step, metrics: reports.append(step),
            sharding=shard(model, settings, ranks),
        )
    weights = torch.cat([local(parameter).detach().flatten() for parameter in model.parameters()]).numpy()
    return weights, history, batches.seen, reports


@pytest.mark.parametrize(
    ("optimizer", "size", "steps"),
    [
        ("muon", 2, 10),
        pytest.param("adamw", 2, 50, marks=pytest.mark.slow),
        pytest.param("muon", 4, 50, marks=pytest.mark.slow),
    ],
)
def test_ranks_follow_the_losses_of_one(optimizer, size, steps):
    settings = make_settings(steps=steps, optimizer=optimizer, ema_decay=0.9, micro_batch_size=2)
    ((_, expected, _, _),) = on_ranks(1, run, settings)
    (first, history, _, reports), (second, _, _, silent), *_ = on_ranks(size, run, settings)
    np.testing.assert_allclose(history.loss_curve["loss"], expected.loss_curve["loss"], rtol=0, atol=1e-5)
    assert expected.loss_curve["loss"][-1] < expected.loss_curve["loss"][0] - 0.1
    assert history.heldout_curve["bits_per_byte"] == pytest.approx(expected.heldout_curve["bits_per_byte"], abs=1e-5)
    assert np.array_equal(first, second)
    assert history.tokens == expected.tokens
    assert reports[-1] == steps
    assert silent == []


def test_what_is_not_finite_on_one_rank_is_left_out_on_all():
    settings = make_settings(optimizer="muon", steps=8)
    (first, history, _, _), (second, other, _, _) = on_ranks(2, run, settings, poisoned=(2, 3, 6))
    assert history.skipped_steps == other.skipped_steps == 3
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


def seen_by_all(results, steps):
    return [torch.cat([seen[step] for _, _, seen, _ in results]) for step in steps]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_resumed_on_another_number_of_ranks_sees_the_same_samples_in_the_same_order(tmp_path, before, after):
    settings = make_settings(checkpoint_every=6)
    unbroken = on_ranks(1, run, settings)
    killed = on_ranks(before, run, settings, tmp_path, killed_at=8)
    resumed = on_ranks(after, run, settings, tmp_path)
    expected = seen_by_all(unbroken, range(12))
    assert all(map(torch.equal, seen_by_all(killed, range(6)), expected[:6]))
    assert all(map(torch.equal, seen_by_all(resumed, range(6, 12)), expected[6:]))
    assert min(resumed[0][2]) == 6  # nothing is read again
    np.testing.assert_allclose(resumed[0][0], unbroken[0][0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(resumed[0][1].loss_curve["loss"], unbroken[0][1].loss_curve["loss"], rtol=0, atol=1e-5)


def test_a_run_resumed_on_as_many_ranks_ends_bit_for_bit_like_an_unbroken_one(tmp_path):
    """With dropout on: each rank's own generator goes on where it was."""
    settings = make_settings(checkpoint_every=6, micro_batch_size=2, spike_deviations=2.0, optimizer="muon")
    unbroken = on_ranks(2, run, settings, dropout=0.2)
    on_ranks(2, run, settings, tmp_path, killed_at=8, dropout=0.2)
    resumed = on_ranks(2, run, settings, tmp_path, dropout=0.2)
    for (weights, history, _, _), (expected, other, _, _) in zip(resumed, unbroken, strict=True):
        assert np.array_equal(weights, expected)
        assert history.loss_curve["loss"] == other.loss_curve["loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000012"]


def dropped(ranks):
    from modelcore.training.random_state import restore_random_state

    torch.manual_seed(3)
    restore_random_state(None, seed=3, device=torch.device("cpu"), ranks=ranks)
    return torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()


def test_ranks_do_not_drop_the_same_activations():
    one, two = on_ranks(2, dropped)
    assert one != two
