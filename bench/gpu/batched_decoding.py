"""Generation from TinyLlama 1.1B in bf16, 32 texts at a time: ours beside transformers with its default cache."""

from __future__ import annotations

from functools import partial

import torch

from bench.benchmark import Options, main
from bench.gpu.contest import Contest, Peer
from bench.gpu.generation import Request, time_hugging_face, time_ours
from bench.gpu.work import TINYLLAMA, build, device_of

REQUEST = Request(batch_size=32, new_tokens=128)


def _ours(options: Options) -> dict[str, float]:
    model = build(TINYLLAMA.at(options).config, device_of(options), torch.bfloat16)
    return time_ours(model, REQUEST, options)


CONTEST = Contest(
    "bench.gpu.batched_decoding",
    "TinyLlama 1.1B, bf16, batch 32",
    _ours,
    {"Hugging Face, dynamic cache": Peer(partial(time_hugging_face, REQUEST, cache="dynamic"))},
)

if __name__ == "__main__":
    main(CONTEST.rows, CONTEST.parts)
