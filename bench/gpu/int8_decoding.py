"""Generation from TinyLlama 1.1B with weights of eight bits, one text at a time: ours beside gpt-fast."""

from __future__ import annotations

from functools import partial

import torch

from bench.benchmark import Options, main
from bench.gpu.contest import Contest, Peer
from bench.gpu.generation import Request, time_ours
from bench.gpu.gptfast import time_gptfast
from bench.gpu.work import TINYLLAMA, build, device_of
from modelcore.quantization import quantize_model

REQUEST = Request(batch_size=1, new_tokens=512)


def _ours(options: Options) -> dict[str, float]:
    model = build(TINYLLAMA.at(options).config, device_of(options), torch.bfloat16)
    return time_ours(quantize_model(model, "int8", head=True), REQUEST, options)


CONTEST = Contest(
    "bench.gpu.int8_decoding",
    "TinyLlama 1.1B, int8, batch 1",
    _ours,
    {"gpt-fast": Peer(partial(time_gptfast, REQUEST, weights="int8"), folder="gptfast")},
)

if __name__ == "__main__":
    main(CONTEST.rows, CONTEST.parts)
