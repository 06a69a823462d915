"""A run killed with SIGKILL at any moment and started again ends bit for bit like one that was never killed.

Every attempt is a process of its own, forked from one that has imported torch, and runs the real stage. Python's
profiling hook counts the function calls of the attempt (those of C too: every write, rename and flush) and kills the
process at one drawn beforehand: a moment that a seed repeats. Another test kills from outside, by the clock, in the
midst of whatever C code is at work.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest

from modelcore.stages.pretrain import pretrain

SERVER = multiprocessing.get_context("forkserver")
# The last two are what torch imports late, when an optimizer is made: a second of every attempt.
SERVER.set_forkserver_preload(["modelcore.stages.pretrain", "torch._dynamo", "torch.distributed.tensor"])

RECIPE = """
model: llama-nano
overrides: {{n_layers: 1, d_model: 16, n_heads: 2, n_kv_heads: 1, d_ff: 16, dropout: 0.2}}
training:
  steps: 9
  batch_size: 4
  micro_batch_size: 2
  sequence_length: 16
  learning_rate: 3.0e-3
  optimizer: {optimizer}
  warmup_steps: 2
  eval_every: 3
  eval_tokens: 50
  checkpoint_every: 2
  log_every: 2
  ema_decay: 0.9
"""
TIMINGS = ("tokens_per_second", "mfu", "train_seconds")


class Calls:
    """Counts the calls of a process, and those inside of the writing of a checkpoint; kills it at one of them."""

    def __init__(self, kill_at):
        self.kill_at, self.count, self.saving, self.inside = kill_at, 0, [], False

    def __call__(self, frame, event, argument):
        if event.startswith("c_"):
            self.count += event == "c_call"
        elif frame.f_code.co_name == "save_checkpoint":
            self.inside = event == "call"
        else:
            self.count += event == "call"
        if self.inside:
            self.saving.append(self.count)
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def attempt(arguments, kill_at, note):
    """Runs the stage in this process; tells how many calls that took, and which of them wrote checkpoints."""
    calls, began = Calls(kill_at), time.monotonic()
    sys.setprofile(calls)
    try:
        pretrain(**arguments)
    finally:
        sys.setprofile(None)
    seconds = time.monotonic() - began
    note.write_text(json.dumps({"calls": calls.count, "saving": sorted(set(calls.saving)), "seconds": seconds}))


def start(arguments, note, kill_at=None, kill_after=None):
    """Runs an attempt to its end, or kills it at a call of its own or after so many seconds; returns how it ended."""
    process = SERVER.Process(target=attempt, args=(arguments, kill_at, note))
    process.start()
    process.join(kill_after)
    process.kill()  # nothing, if it has ended
    process.join()
    return process.exitcode


def outcome(out):
    """Every byte of the model folder, but for figures of time."""
    content = {path.name: path.read_bytes() for path in out.iterdir()}
    training = json.loads(content.pop("training.json"))
    for part in ("totals", "loss_curve"):
        for name in TIMINGS:
            training[part].pop(name, None)
    return content, training


@pytest.fixture(params=["adamw", "muon"])
def unbroken(request, tokens, tmp_path):
    """A run never killed: its arguments, its outcome, and the calls that it took."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(optimizer=request.param))
    arguments = {"tokens": tokens, "preset": str(recipe), "seed": 3, "device": "cpu"}
    note = tmp_path / "note.json"
    assert start(arguments | {"out": tmp_path / "unbroken"}, note) == 0
    return arguments, outcome(tmp_path / "unbroken"), json.loads(note.read_text())


def kill_often(unbroken, tmp_path, kills, draw):
    """Runs the stage, killed and started again until it is done, as often as it takes to kill it ``kills`` times.

    ``draw`` gives the moment of each attempt, as arguments of :func:`start`.
    """
    arguments, expected, _ = unbroken
    killed = runs = 0
    while killed < kills:
        out = tmp_path / f"run-{runs}" / "model"
        while (status := start(arguments | {"out": out}, tmp_path / "note.json", **draw())) != 0:
            assert status == -signal.SIGKILL
            killed += 1
        assert outcome(out) == expected
        assert [path.name for path in out.parent.iterdir()] == ["model"]  # nothing is left beside it
        runs += 1


def drawing(took, seed):
    """Moments: every other one somewhere in the run, every other one inside of the writing of a checkpoint."""
    generator = random.Random(seed)
    turns = itertools.cycle([range(1, took["calls"]), took["saving"]])
    return lambda: {"kill_at": generator.choice(next(turns))}


def test_killed_at_some_random_moments_it_ends_like_one_never_killed(unbroken, tmp_path):
    kill_often(unbroken, tmp_path, 4, drawing(unbroken[2], seed=1))


@pytest.mark.slow
def test_killed_at_many_random_moments_it_ends_like_one_never_killed(unbroken, tmp_path):
    kill_often(unbroken, tmp_path, 20, drawing(unbroken[2], seed=2))


@pytest.mark.slow
def test_killed_from_outside_at_many_random_moments_it_ends_like_one_never_killed(unbroken, tmp_path):
    generator = random.Random(3)
    longest = 2 * unbroken[2]["seconds"]  # long enough to come forward even where the machine has become slower
    kill_often(unbroken, tmp_path, 6, lambda: {"kill_after": generator.uniform(0, longest)})
