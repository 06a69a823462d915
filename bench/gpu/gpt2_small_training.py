"""Training GPT-2 124M as it was published, with biases and 50,257 tokens: ours beside Hugging Face.

The vocabulary is padded to 50,304 in both: in ours by a setting, in theirs by its size.
"""

from __future__ import annotations

import dataclasses

from bench.benchmark import Options, main
from bench.gpu import hugging_face
from bench.gpu.contest import Contest, Peer
from bench.gpu.training import time_ours, time_peer
from bench.gpu.work import GPT2, build, compiled, device_of


def _ours(options: Options) -> dict[str, float]:
    work = GPT2.at(options)
    return time_ours(build(work.config, device_of(options)), work, options)


def _hugging_face(options: Options) -> dict[str, float]:
    work, device = GPT2.at(options), device_of(options)
    padded = -(-work.config.vocab_size // 128) * 128
    model = hugging_face.build(dataclasses.replace(work.config, vocab_size=padded), device)
    return time_peer(hugging_face.loss_of(compiled(model, device)), model.parameters(), work, options)


CONTEST = Contest("bench.gpu.gpt2_small_training", "124M, B=32, T=1024", _ours, {"Hugging Face": Peer(_hugging_face)})

if __name__ == "__main__":
    main(CONTEST.rows, CONTEST.parts)
