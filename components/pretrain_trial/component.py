"""KFP component: one trial of a sweep."""

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def pretrain_trial(
    tokens: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Artifact],
    trial: str,
    preset: str,
    steps: int,
    batch_size: int,
    sequence_length: int,
    learning_rate: float,
    optimizer: str,
    seed: int,
    checkpoint_uri: str,
) -> None:
    """Pretrains by a recipe with changes; a trial that fails or diverges says so, and does not end the sweep.

    Args:
        tokens: Shards from tokenize_corpus.
        checkpoint: The trained model, or failure.json with the reason why there is none.
        metrics: The figures of pretraining.
        summary: What pretraining tells about itself (JSON).
        trial: What is changed, such as "learning_rate=0.003 n_layers=2": settings of training, fields of the model.
        preset: Name of the training recipe that is changed.
        steps: Optimizer steps; 0: the recipe's.
        batch_size: Sequences of one step; 0: the recipe's.
        sequence_length: Tokens of a sequence; 0: the recipe's.
        learning_rate: Peak learning rate where the trial names none; 0: the recipe's.
        optimizer: adamw or muon; recipe: the recipe's.
        seed: Seed of the weights and of the order of samples.
        checkpoint_uri: Path or s3:// prefix for checkpoints, each trial in a folder there; empty: in the workspace,
            or where there is none beside the output, until the trial is over.
    """
    from modelcore.stages.pretrain_trial import pretrain_trial

    result = pretrain_trial(
        tokens=tokens.path,
        out=checkpoint.path,
        trial=trial,
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
