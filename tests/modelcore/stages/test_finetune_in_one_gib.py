"""GPT-2 small, 124 million parameters, is tuned on a CPU by a process that may hold 1 GiB and not a byte more."""

import json
import os
import struct
import sys

import pytest
import torch

from modelcore.adapters import load_adapter, merge
from modelcore.convert.huggingface import write_huggingface
from modelcore.gptx import GPT
from modelcore.models import get_config, load_model, save_model
from modelcore.stages.stage import StageSummary
from modelcore.tokenizers.training import train_sentencepiece
from tests.control_groups import control_group

pytestmark = pytest.mark.slow

LIMIT = 1 << 30
PAIRS = [(f"How far is it to the village of {name}?", f"It is {n} miles to {name}.") for n in range(3, 9)
         for name in ("Highbury", "Randalls", "Hartfield")][:9]  # fmt: skip


def piece(number):
    """An unused entry of a SentencePiece vocabulary: text, score, kind."""
    text = f"<unused-{number}>".encode()
    body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", -1e5) + b"\x18\x05"
    return b"\x0a" + bytes([len(body)]) + body


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """GPT-2 small with random weights, and a tokenizer filled up to its 50,257 tokens."""
    folder, scratch = tmp_path_factory.mktemp("gpt2-small"), tmp_path_factory.mktemp("scratch")
    train_sentencepiece([f"{p} {r}" for p, r in PAIRS], scratch, vocab_size=330, algorithm="bpe", seed=0)
    trained = (scratch / "tokenizer.model").read_bytes()
    (scratch / "filled.model").write_bytes(trained + b"".join(map(piece, range(330, 50257))))
    torch.manual_seed(0)
    save_model(folder, GPT(get_config("gpt2-small")), scratch / "filled.model")
    (scratch / "pairs.jsonl").write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in PAIRS))
    with open(folder / "model.safetensors", "rb") as file:  # its pages must be charged to who reads them next
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return folder, scratch / "pairs.jsonl"


def test_the_limit_is_real():
    """Otherwise the other tests here would show nothing: who takes more than the limit does not live to say so."""
    take = "import sys; held = bytearray(int(sys.argv[1])); held[::4096] = bytes([1]) * len(held[::4096]); print('ok')"
    with control_group(memory=LIMIT // 4) as group:
        assert group.run([sys.executable, "-c", take, str(LIMIT // 8)]).stdout == "ok\n"
        assert group.run([sys.executable, "-c", take, str(LIMIT // 2)]).returncode != 0


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_gpt2_small_is_tuned_inside_1_gib(checkpoint, quantize, tmp_path):
    model, pairs = checkpoint
    stage = (
        "import sys; from modelcore.stages.finetune_lora import finetune_lora as tune; from pathlib import Path;"
        "tune(checkpoint=sys.argv[1], instructions=sys.argv[2], out=sys.argv[3], quantize=sys.argv[4], steps=2,"
        "batch_size=8, micro_batch_size=4, learning_rate=1e-2, summary=Path(sys.argv[5]))"
    )
    with control_group(memory=LIMIT) as group:
        command = [sys.executable, "-c", stage, model, pairs, tmp_path / "adapter", quantize, tmp_path / "summary.json"]
        done = group.run(command)
        assert done.returncode == 0, f"killed or failed under the limit: {done.stderr[-2000:]}"
    summary = StageSummary.load(tmp_path / "summary.json")
    print(f"{quantize}: peak resident memory {summary.peak_memory_mib} MiB, mapped files included")
    assert summary.peak_memory_mib <= LIMIT / 2**20
    assert summary.results["skipped_steps"] == 0
    assert summary.results["heldout_reply_loss_after"] < summary.results["heldout_reply_loss_before"]

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load_model(model)
    (tmp_path / "base").mkdir()
    write_huggingface(tmp_path / "base", base, None)
    tokens = torch.randint(50257, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = base(tokens)
        ours = load_adapter(tmp_path / "adapter", base, base=model)
        unmerged = ours(tokens)
        theirs = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
        )
        assert (theirs.eval()(tokens).logits - unmerged).abs().max() <= 1e-4
        assert (merge(ours)(tokens) - unmerged).abs().max() <= 1e-4
        assert (unmerged - plain).abs().max() > 1e-3
