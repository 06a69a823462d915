"""Benchmarks on one GPU, one module each."""

BENCHMARKS: tuple[str, ...] = (
    "card",
    "gpt2_training",
    "gpt2_small_training",
    "tinyllama_training",
    "lora_tuning",
    "bf16_decoding",
    "int8_decoding",
    "batched_decoding",
    "gpt2_loss_curves",
    "training_from_disk",
    "device_checkpoints",
)
"""The modules that run by default, in the order they run."""

PEERS: tuple[str, ...] = ("nanogpt", "litgpt", "gptfast")
"""The peers that are measured where a path to them is given."""

TRAINING: tuple[str, ...] = (
    "gpt2_training",
    "gpt2_small_training",
    "tinyllama_training",
    "lora_tuning",
    "gpt2_loss_curves",
    "training_from_disk",
    "device_checkpoints",
)
"""Those of them that take the training settings that ``--set`` gives."""
