"""KFP component: tune the model with LoRA on several nodes."""

from kfp import dsl

from components.images import LAUNCHER_IMAGE


@dsl.component(base_image=LAUNCHER_IMAGE, install_kfp_package=False)
def finetune_lora_distributed(
    checkpoint: dsl.Input[dsl.Model],
    adapter: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Artifact],
    instructions: str,
    rank: int,
    alpha: float,
    quantize: str,
    micro_batch_size: int,
    steps: int,
    learning_rate: float,
    seed: int,
    nodes: int,
    processes_per_node: int,
    runtime: str,
) -> None:
    """Tunes a LoRA adapter on the replies of conversations, in a TrainJob of Kubeflow Trainer.

    Its pod needs the claim that the job's pods write to, at /workspace (MODELCORE_WORKSPACE names another place), and a
    service account that may handle TrainJobs. Cancelled, it deletes the job; killed, its next attempt finds it again.

    Args:
        checkpoint: The pretrained model.
        adapter: The adapter in PEFT's format.
        metrics: The stage's figures.
        summary: What the stage tells about itself (JSON).
        instructions: A .jsonl file or s3:// object of lines with the field messages, or prompt and response.
        rank: Rank of the adapter's matrices.
        alpha: Scale of the adapter: its update is multiplied by alpha / rank.
        quantize: What the frozen layers are held in: none, int8 or nf4.
        micro_batch_size: Conversations that go through a process's model at once; 0: all of a step that are its.
        steps: Optimizer steps.
        learning_rate: Peak learning rate.
        seed: Seed of the adapter's weights and of the order of samples.
        nodes: Nodes of the job.
        processes_per_node: Processes on each node, one a GPU.
        runtime: Name of the ClusterTrainingRuntime, or of a TrainingRuntime of the namespace.
    """
    from modelcore.stages.finetune_lora_distributed import finetune_lora_distributed

    result = finetune_lora_distributed(
        checkpoint=checkpoint.path,
        instructions=instructions,
        out=adapter.path,
        rank=rank,
        alpha=alpha,
        quantize=quantize,
        micro_batch_size=micro_batch_size,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        nodes=nodes,
        processes_per_node=processes_per_node,
        runtime=runtime,
        summary=summary.path,
    )
    for name, value in result.numbers().items():
        metrics.log_metric(name, value)
