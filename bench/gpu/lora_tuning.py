"""Tuning TinyLlama 1.1B, in bf16, with LoRA of rank 16 on every linear layer of its blocks: ours beside PEFT."""

from __future__ import annotations

from functools import partial

import torch

from bench.benchmark import Options, main
from bench.gpu import hugging_face
from bench.gpu.contest import Contest, Peer
from bench.gpu.training import time_ours, time_peer
from bench.gpu.work import TINYLLAMA, build, compiled, device_of
from modelcore.adapters import LoRAConfig, add_lora
from modelcore.models import llama

RANK, ALPHA = 16, 32.0


def _ours(options: Options) -> dict[str, float]:
    work = TINYLLAMA.at(options)
    model = build(work.config, device_of(options), torch.bfloat16)
    add_lora(model, LoRAConfig(rank=RANK, alpha=ALPHA, targets=llama.LORA_TARGETS))
    # No padding: TinyLlama's vocabulary is a multiple of 128, and a model is padded before it gets adapters.
    # In two pieces: next to no gradients are to be added up, so half of the memory costs little time.
    pieces = {"micro_batch_size": work.batch_size // 2, "pad_vocab_to_multiple": 1}
    return _without_mfu(time_ours(model, work, options, clip_norm=0.0, **pieces))


def _peft(options: Options, is_compiled: bool) -> dict[str, float]:
    from peft import LoraConfig, get_peft_model

    work, device = TINYLLAMA.at(options), device_of(options)
    base = hugging_face.build(work.config, device, torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    loss = hugging_face.loss_of(compiled(model, device) if is_compiled else model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _without_mfu(time_peer(loss, trained, work, options, clip_norm=0.0))


def _without_mfu(figures: dict[str, float]) -> dict[str, float]:
    """The figures without MFU, which counts gradients of all weights: most of these are frozen."""
    return {metric: value for metric, value in figures.items() if metric != "MFU"}


CONTEST = Contest(
    "bench.gpu.lora_tuning",
    "TinyLlama 1.1B, r=16, B=8, T=2048",
    _ours,
    {
        "PEFT, compiled": Peer(partial(_peft, is_compiled=True), package="peft"),
        "PEFT, eager": Peer(partial(_peft, is_compiled=False), package="peft"),
    },
)

if __name__ == "__main__":
    main(CONTEST.rows, CONTEST.parts)
