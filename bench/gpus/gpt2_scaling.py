"""Training GPT-2 124M on several GPUs, each with the whole model (DDP)."""

from bench.benchmark import main
from bench.gpu.work import GPT2
from bench.gpus.scaling import Scaling

SCALING = Scaling("bench.gpus.gpt2_scaling", "124M, DDP", GPT2, "ddp", learning_rate=6e-4)

if __name__ == "__main__":
    main(SCALING.rows, SCALING.parts)
