"""Benchmarks on a CPU, one module each."""

BENCHMARKS: tuple[str, ...] = (
    "processor",
    "training",
    "decoding",
    "first_token",
    "tokenization",
    "loader",
    "checkpoints",
    "sharded_checkpoints",
    "stages",
)
"""The modules, in the order they run."""

PEERS: tuple[str, ...] = ("llamacpp",)
"""The peers that are measured where a path to them is given."""

TRAINING: tuple[str, ...] = ("training",)
"""Those of them that take the training settings that ``--set`` gives."""
