"""A process of several is lost, torchrun starts all of them again, and the run ends as if nothing had happened.

A worker kills itself with SIGKILL, which nothing can catch, at a moment that the test names: in the middle of a step,
or of the writing of a checkpoint's file.
"""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

RECIPE = """
model: llama-nano
overrides: {n_layers: 1, d_model: 32, n_heads: 4, n_kv_heads: 2, d_ff: 48, dropout: 0.0}
training:
  steps: 12
  batch_size: 4
  sequence_length: 16
  learning_rate: 3.0e-3
  warmup_steps: 2
  eval_tokens: 100
  checkpoint_every: 4
  log_every: 3
  ema_decay: 0.9
  pad_vocab_to_multiple: 64
  parallel: fsdp
"""


# What torchrun starts: the command line, in which one rank's life ends early, by number of restarts, at a moment.
PROGRAM = """
import json, os, signal, sys
from modelcore import cli
from modelcore.data.loader import TrainingBatches
from modelcore.training import sharded_storage

rank, what, where = json.loads(sys.argv.pop(1)).get(os.environ["TORCHELASTIC_RESTART_COUNT"], (None, None, None))

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def batch(self, step, *place, was=TrainingBatches.batch):
    return die() if what == "step" and step == where else was(self, step, *place)

def save_file(tensors, path, was=sharded_storage.save_file):
    was(tensors, path)
    if what == "file" and where in path.parent.name:
        os.truncate(path, path.stat().st_size // 2)
        die()

if rank == int(os.environ["RANK"]):
    TrainingBatches.batch, sharded_storage.save_file = batch, save_file
sys.exit(cli.main())
"""


def launch(size, tokens, out, moments):
    out.parent.mkdir()
    for name, text in (("program.py", PROGRAM), ("tiny.yaml", RECIPE)):
        (out.parent.parent / name).write_text(text)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    program = [out.parent.parent / "program.py", json.dumps(moments), "pretrain", "--tokens", tokens, "--out", out]
    return subprocess.run(
        [
            *torchrun,
            "--max-restarts=2",
            "--monitor-interval=0.1",
            *program,
            "--preset",
            out.parent.parent / "tiny.yaml",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("size", "moments"),
    [
        (2, {0: (1, "file", "step-00000008")}),
        (4, {0: (3, "step", 6), 1: (0, "file", "step-00000008")}),
    ],
)
def test_a_run_that_loses_a_process_ends_bit_for_bit_like_one_that_does_not(tokens, tmp_path, size, moments):
    assert launch(size, tokens, tmp_path / "undisturbed" / "model", {}).returncode == 0
    disturbed = launch(size, tokens, tmp_path / "disturbed" / "model", moments)
    assert disturbed.returncode == 0, disturbed.stderr
    assert disturbed.stderr.count("stage=pretrain status=started") == 1 + len(moments)
    assert disturbed.stderr.count("resumes from") == len(moments)
    expected, found = (weights(tmp_path / name / "model") for name in ("undisturbed", "disturbed"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert [path.name for path in (tmp_path / "disturbed").iterdir()] == ["model"]
