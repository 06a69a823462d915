"""Generation from TinyLlama 1.1B in bf16, one text at a time: ours beside gpt-fast and transformers."""

from __future__ import annotations

from functools import partial

import torch

from bench.benchmark import Options, main
from bench.gpu.contest import Contest, Peer
from bench.gpu.generation import Request, time_hugging_face, time_ours
from bench.gpu.gptfast import time_gptfast
from bench.gpu.work import TINYLLAMA, build, device_of

REQUEST = Request(batch_size=1, new_tokens=512)


def _ours(options: Options) -> dict[str, float]:
    model = build(TINYLLAMA.at(options).config, device_of(options), torch.bfloat16)
    return time_ours(model, REQUEST, options)


CONTEST = Contest(
    "bench.gpu.bf16_decoding",
    "TinyLlama 1.1B, bf16, batch 1",
    _ours,
    {
        "gpt-fast": Peer(partial(time_gptfast, REQUEST, weights="bf16"), folder="gptfast"),
        "Hugging Face, static cache": Peer(partial(time_hugging_face, REQUEST, cache="static")),
    },
)

if __name__ == "__main__":
    main(CONTEST.rows, CONTEST.parts)
