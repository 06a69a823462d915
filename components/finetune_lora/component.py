"""KFP component: tune the model with LoRA."""

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def finetune_lora(
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
) -> None:
    """Tunes a LoRA adapter on the replies of conversations, the base model frozen.

    Args:
        checkpoint: The pretrained model.
        adapter: The adapter in PEFT's format.
        metrics: The stage's figures.
        summary: What the stage tells about itself (JSON).
        instructions: A .jsonl file or s3:// object of lines with the field messages, or prompt and response.
        rank: Rank of the adapter's matrices.
        alpha: Scale of the adapter: its update is multiplied by alpha / rank.
        quantize: What the frozen layers are held in: none, int8 or nf4.
        micro_batch_size: Conversations that go through the model at once, for less memory; 0: a whole batch.
        steps: Optimizer steps.
        learning_rate: Peak learning rate.
        seed: Seed of the adapter's weights and of the order of samples.
    """
    from modelcore.stages.finetune_lora import finetune_lora

    result = finetune_lora(
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
        summary=summary.path,
    )
    for name, value in result.numbers().items():
        metrics.log_metric(name, value)
