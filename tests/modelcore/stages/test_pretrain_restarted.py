"""A process of several is lost, torchrun starts all of them again, and the run ends as if nothing had happened.

A worker kills itself with SIGKILL, which nothing can catch, at a moment that the test names: in the middle of a step,
or of the writing of a checkpoint's file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelcore import storage

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


def launch(size, tokens, out, moments, layout):
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
            *layout,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )


def weights(folder):
    return load_file(folder / "model.safetensors")


# By step 10 checkpoint 4 is there: the one of step 8, written behind the steps, has waited for it.
@pytest.mark.parametrize(
    ("size", "layout", "moments"),
    [
        (2, [], {0: (1, "file", "step-00000008")}),
        (4, [], {0: (3, "step", 10), 1: (0, "file", "step-00000012")}),
        (2, ["--parallel", "ddp"], {0: (1, "step", 6)}),
        (2, ["--parallel", "ddp", "--tensor-parallel", "2"], {0: (0, "step", 10)}),
    ],
)
def test_a_run_that_loses_a_process_ends_bit_for_bit_like_one_that_does_not(tokens, tmp_path, size, layout, moments):
    assert launch(size, tokens, tmp_path / "undisturbed" / "model", {}, layout).returncode == 0
    disturbed = launch(size, tokens, tmp_path / "disturbed" / "model", moments, layout)
    assert disturbed.returncode == 0, disturbed.stderr
    assert disturbed.stderr.count("stage=pretrain status=started") == 1 + len(moments)
    assert disturbed.stderr.count("resumes from") == len(moments)
    expected, found = (weights(tmp_path / name / "model") for name in ("undisturbed", "disturbed"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert [path.name for path in (tmp_path / "disturbed").iterdir()] == ["model"]


SENDER = """
import os, sys
from modelcore import cli
from modelcore.training import sharded_storage

def save_file(tensors, path, was=sharded_storage.save_file):
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{path}\\n")
    was(tensors, path)

sharded_storage.save_file = save_file
sys.exit(cli.main(sys.argv[1:]))
"""


def test_what_goes_to_s3_in_pieces_lies_on_no_shared_disk_on_its_way(tokens, tmp_path, s3_bucket, s3_server):
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir()
    shared.mkdir()
    (tmp_path / "program.py").write_text(SENDER)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    stage = ["pretrain", "--tokens", tokens, "--out", shared / "model", "--preset", tmp_path / "tiny.yaml"]
    place = f"s3://{s3_bucket}/run"
    environment = os.environ | s3_server.environment | {"TMPDIR": str(own), "SEEN": str(tmp_path / "seen")}
    environment.pop("MODELCORE_WORK", None)
    ended = subprocess.run(
        [*torchrun, tmp_path / "program.py", *stage, "--parallel", "fsdp", "--checkpoint-uri", place],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    written = (tmp_path / "seen").read_text().splitlines()
    assert written
    assert not [path for path in written if not Path(path).is_relative_to(own)]
    assert storage.list_children(place)
    assert [path.name for path in shared.iterdir()] == ["model"]
    assert not [path for path in own.iterdir() if "training" in path.name]
