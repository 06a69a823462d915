"""LoRA tuning on several nodes: the stage ``finetune_lora``, run by a TrainJob of Kubeflow Trainer."""

from __future__ import annotations

from pathlib import Path

from modelcore.stages.stage import StageSummary
from modelcore.stages.trained import ADAPTER


def finetune_lora_distributed(
    *,
    checkpoint: Path | str,
    instructions: Path | str,
    out: Path | str,
    rank: int,
    alpha: float,
    quantize: str,
    steps: int,
    learning_rate: float,
    micro_batch_size: int = 0,
    seed: int = 0,
    nodes: int = 1,
    processes_per_node: int = 1,
    runtime: str = "aic-gpt-torch",
    summary: Path | str | None = None,
) -> StageSummary:
    """Tunes a model, as :func:`modelcore.stages.finetune_lora.finetune_lora` does, on the nodes of a job.

    Args:
        checkpoint: A native model folder with its tokenizer.
        instructions: A .jsonl file of conversations, at a path or an ``s3://`` address.
        out: The adapter's folder.
        rank: Rank of the corrections.
        alpha: They are scaled by alpha / rank.
        quantize: What the frozen layers are held in: ``none``, ``int8`` or ``nf4``.
        steps: Optimizer steps.
        learning_rate: Peak learning rate.
        micro_batch_size: Conversations that go through a process's model at once; 0: all of a step that are its.
        seed: Decides the adapter's start, the order of the conversations, and dropout.
        nodes: Nodes of the job.
        processes_per_node: Processes on each, one a GPU.
        runtime: The (Cluster)TrainingRuntime.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary that ``finetune_lora`` wrote in the job.

    Raises:
        InputError: If the job fails, is deleted by somebody else, or cannot be made.
    """
    from modelcore.cluster.trainer_stage import run_on_trainer

    return run_on_trainer(
        "finetune_lora",
        {
            "rank": rank,
            "alpha": alpha,
            "quantize": quantize,
            "micro_batch_size": micro_batch_size,
            "steps": steps,
            "learning_rate": learning_rate,
            "seed": seed,
        },
        inputs={"checkpoint": checkpoint, "instructions": instructions},
        out=out,
        kind=ADAPTER,
        nodes=nodes,
        processes_per_node=processes_per_node,
        runtime=runtime,
        summary=summary,
    )
