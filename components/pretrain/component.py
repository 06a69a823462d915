"""KFP component: pretrain the model."""

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def pretrain(
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
) -> None:
    """Trains a GPT from scratch on token shards; run again after a crash, it goes on where it stopped.

    Args:
        tokens: Shards from tokenize_corpus.
        checkpoint: The trained model: config.json, model.safetensors, tokenizer.model.
        metrics: The stage's figures.
        summary: What the stage tells about itself (JSON).
        preset: Name of a training recipe, for example llama-nano or gpt2-small.
        steps: Optimizer steps; 0: the recipe's.
        batch_size: Sequences of one step; 0: the recipe's.
        sequence_length: Tokens of a sequence; 0: the recipe's.
        learning_rate: Peak learning rate; 0: the recipe's.
        optimizer: adamw or muon; recipe: the recipe's.
        seed: Seed of the weights and of the order of samples.
        checkpoint_uri: Path or s3:// prefix where training checkpoints survive a crash; empty: beside the output.
    """
    from modelcore.stages.pretrain import pretrain

    result = pretrain(
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
        summary=summary.path,
    )
    for name, value in result.numbers().items():
        metrics.log_metric(name, value)
