"""Benchmarks on one GPU, one module each."""

BENCHMARKS: tuple[str, ...] = ()
"""The modules, in the order they run."""

PEERS: tuple[str, ...] = ("nanogpt", "litgpt", "gptfast", "llamacpp")
"""The peers that are measured where a path to them is given."""
