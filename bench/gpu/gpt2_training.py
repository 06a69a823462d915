"""Training GPT-2 124M in the shape of nanoGPT's own benchmark: ours beside nanoGPT."""

from __future__ import annotations

from bench.benchmark import Options, main
from bench.gpu import nanogpt
from bench.gpu.contest import Contest, Peer
from bench.gpu.training import time_ours, time_peer
from bench.gpu.work import NANOGPT, build, compiled, device_of


def _ours(options: Options) -> dict[str, float]:
    work = NANOGPT.at(options)
    return time_ours(build(work.config, device_of(options)), work, options)


def _nanogpt(options: Options) -> dict[str, float]:
    work, device = NANOGPT.at(options), device_of(options)
    model = nanogpt.build(options.peers["nanogpt"], work.config, device)
    run = compiled(model, device)
    return time_peer(lambda inputs, targets: run(inputs, targets)[1], model.parameters(), work, options)


CONTEST = Contest(
    "bench.gpu.gpt2_training",
    "124M without biases, B=32, T=1024",
    _ours,
    {"nanoGPT": Peer(_nanogpt, folder="nanogpt")},
)

if __name__ == "__main__":
    main(CONTEST.rows, CONTEST.parts)
