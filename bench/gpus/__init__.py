"""Benchmarks on all GPUs of one host, one module each."""

BENCHMARKS: tuple[str, ...] = ("gpt2_scaling", "tinyllama_scaling")
"""The modules that run by default, in the order they run."""

PEERS: tuple[str, ...] = ()
"""None: one GPU is what several are measured by."""

TRAINING: tuple[str, ...] = BENCHMARKS
"""Those of them that take the training settings that ``--set`` gives."""
