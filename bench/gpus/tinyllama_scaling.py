"""Training TinyLlama 1.1B on several GPUs, each with a shard of every matrix (FSDP2)."""

from bench.benchmark import main
from bench.gpu.work import TINYLLAMA
from bench.gpus.scaling import Scaling

SCALING = Scaling("bench.gpus.tinyllama_scaling", "1.1B, FSDP2", TINYLLAMA, "fsdp", learning_rate=4e-4)

if __name__ == "__main__":
    main(SCALING.rows, SCALING.parts)
