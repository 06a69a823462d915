"""Pretraining on several nodes: the stage ``pretrain``, run by a TrainJob of Kubeflow Trainer."""

from __future__ import annotations

from pathlib import Path

from modelcore.stages.stage import StageSummary
from modelcore.stages.trained import MODEL


def pretrain_distributed(
    *,
    tokens: Path | str,
    out: Path | str,
    preset: str,
    steps: int = 0,
    batch_size: int = 0,
    sequence_length: int = 0,
    learning_rate: float = 0.0,
    optimizer: str = "recipe",
    seed: int = 0,
    checkpoint_uri: str = "",
    parallel: str = "recipe",
    shard_size: int = 0,
    tensor_parallel: int = 0,
    nodes: int = 1,
    processes_per_node: int = 1,
    runtime: str = "aic-gpt-torch",
    summary: Path | str | None = None,
) -> StageSummary:
    """Trains a model from random weights, as :func:`modelcore.stages.pretrain.pretrain` does, on the nodes of a job.

    Args:
        tokens: A token folder.
        out: Where the model goes.
        preset: Name of a recipe.
        steps: Optimizer steps; 0: the recipe's.
        batch_size: Sequences a step, of all processes together; 0: the recipe's.
        sequence_length: Tokens a sequence; 0: the recipe's.
        learning_rate: Peak learning rate; 0: the recipe's.
        optimizer: ``adamw``, ``muon``; ``recipe``: the recipe's.
        seed: Decides initial weights, order of samples, and dropout.
        checkpoint_uri: Where checkpoints survive the job: an ``s3://`` prefix, or a path in the workspace. "": beside
            the job's output in the workspace, until it is complete.
        parallel: ``ddp`` or ``fsdp``; ``recipe``: as the recipe says.
        shard_size: With fsdp, the processes that a matrix is cut up between; 0: the recipe's, which is all of them.
        tensor_parallel: Processes that share each of the blocks' matrices; 0: the recipe's, which is 1.
        nodes: Nodes of the job.
        processes_per_node: Processes on each, one a GPU.
        runtime: The (Cluster)TrainingRuntime.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary that ``pretrain`` wrote in the job.

    Raises:
        InputError: If the job fails, is deleted by somebody else, or cannot be made.
    """
    from modelcore.cluster.trainer_stage import run_on_trainer

    return run_on_trainer(
        "pretrain",
        {
            "preset": preset,
            "steps": steps,
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "learning_rate": learning_rate,
            "optimizer": optimizer,
            "seed": seed,
            "checkpoint_uri": checkpoint_uri,
            "parallel": parallel,
            "shard_size": shard_size,
            "tensor_parallel": tensor_parallel,
        },
        inputs={"tokens": tokens},
        out=out,
        kind=MODEL,
        nodes=nodes,
        processes_per_node=processes_per_node,
        runtime=runtime,
        summary=summary,
    )
