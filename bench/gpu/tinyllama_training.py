"""Training TinyLlama 1.1B: ours beside litgpt and Hugging Face."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bench.benchmark import Options, main
from bench.gpu import hugging_face, litgpt
from bench.gpu.contest import Contest, Peer
from bench.gpu.training import time_ours, time_peer
from bench.gpu.work import TINYLLAMA, build, compiled, device_of


def _ours(options: Options) -> dict[str, float]:
    work = TINYLLAMA.at(options)
    return time_ours(build(work.config, device_of(options)), work, options)


def _litgpt(options: Options) -> dict[str, float]:
    work, device = TINYLLAMA.at(options), device_of(options)
    model = litgpt.build(options.peers["litgpt"], work.config, device)
    run = compiled(model, device)

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(run(inputs).flatten(0, 1), targets.flatten())

    return time_peer(loss, model.parameters(), work, options)


def _hugging_face(options: Options) -> dict[str, float]:
    work, device = TINYLLAMA.at(options), device_of(options)
    model = hugging_face.build(work.config, device)
    return time_peer(hugging_face.loss_of(compiled(model, device)), model.parameters(), work, options)


CONTEST = Contest(
    "bench.gpu.tinyllama_training",
    "1.1B, B=8, T=2048",
    _ours,
    {"litgpt": Peer(_litgpt, folder="litgpt"), "Hugging Face": Peer(_hugging_face)},
)

if __name__ == "__main__":
    main(CONTEST.rows, CONTEST.parts)
