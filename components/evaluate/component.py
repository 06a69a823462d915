"""KFP component: measure the model on text it has never seen."""

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def evaluate(
    checkpoint: dsl.Input[dsl.Model],
    export: dsl.Input[dsl.Model],
    tokens: dsl.Input[dsl.Dataset],
    heldout: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Artifact],
    seed: int,
) -> None:
    """Bits per byte, perplexity and accuracy on the held-out text, beside what compressors reach, and samples.

    Args:
        checkpoint: The pretrained model.
        export: The tuned model as it is shipped.
        tokens: Token shards, for the held-out split.
        heldout: The held-out text itself, for the compressors.
        evaluation: Folder with evaluation.json and the samples.
        metrics: The stage's figures.
        summary: What the stage tells about itself (JSON).
        seed: Seed of the samples.
    """
    from modelcore.stages.evaluate import evaluate

    result = evaluate(
        checkpoint=checkpoint.path,
        export=export.path,
        tokens=tokens.path,
        heldout=heldout.path,
        out=evaluation.path,
        seed=seed,
        summary=summary.path,
    )
    for name, value in result.numbers().items():
        metrics.log_metric(name, value)
