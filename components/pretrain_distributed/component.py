"""KFP component: pretrain the model on several nodes."""

from kfp import dsl

from components.images import LAUNCHER_IMAGE


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def pretrain_distributed(
    tokens: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Artifact],
    preset: str,
    steps: int,
    batch_size: int,
    sequence_length: int,
    learning_rate: float,
    optimizer: str,
    seed: int,
    checkpoint_uri: str,
    parallel: str,
    shard_size: int,
    tensor_parallel: int,
    nodes: int,
    processes_per_node: int,
    runtime: str,
) -> None:
    """Trains a GPT from scratch on token shards, in a TrainJob of Kubeflow Trainer that it starts and follows.

    Its pod needs the claim that the job's pods write to, at /workspace (MODELCORE_WORKSPACE names another place), and a
    service account that may handle TrainJobs. Cancelled, it deletes the job; killed, its next attempt finds it again.

    Args:
        tokens: Shards from tokenize_corpus.
        checkpoint: The trained model: config.json, model.safetensors, tokenizer.model.
        metrics: The stage's figures.
        summary: What the stage tells about itself (JSON).
        preset: Name of a training recipe, for example gpt2-small or tinyllama-1.1b.
        steps: Optimizer steps; 0: the recipe's.
        batch_size: Sequences of one step, of all processes together; 0: the recipe's.
        sequence_length: Tokens of a sequence; 0: the recipe's.
        learning_rate: Peak learning rate; 0: the recipe's.
        optimizer: adamw or muon; recipe: the recipe's.
        seed: Seed of the weights and of the order of samples.
        checkpoint_uri: s3:// prefix or path in the workspace for checkpoints; empty: beside the job's output.
        parallel: ddp (each process has the whole model) or fsdp (each has a part of it); recipe: as the recipe says.
        shard_size: With fsdp, the processes that a matrix is cut up between; 0: the recipe's, which is all of them.
        tensor_parallel: Processes that share each of the blocks' matrices; 0: the recipe's, which is 1.
        nodes: Nodes of the job.
        processes_per_node: Processes on each node, one a GPU.
        runtime: Name of the ClusterTrainingRuntime, or of a TrainingRuntime of the namespace.
    """
    from modelcore.stages.pretrain_distributed import pretrain_distributed

    result = pretrain_distributed(
        tokens=tokens.path,
        out=checkpoint.path,
        preset=preset,
        steps=steps,
        batch_size=batch_size,
        sequence_length=sequence_length,
        learning_rate=learning_rate,
        optimizer=optimizer,
        seed=seed,
        checkpoint_uri=checkpoint_uri,
        parallel=parallel,
        shard_size=shard_size,
        tensor_parallel=tensor_parallel,
        nodes=nodes,
        processes_per_node=processes_per_node,
        runtime=runtime,
        summary=summary.path,
    )
    for name, value in result.numbers().items():
        metrics.log_metric(name, value)
