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
    instructions: str,
    seed: int,
    task_items: int,
) -> None:
    """Bits per byte, accuracy, calibration, tasks made from the held-out text, beside compressors; and samples.

    Args:
        checkpoint: The pretrained model.
        export: The tuned model as it is shipped.
        tokens: Token shards, for the held-out split.
        heldout: The held-out text itself, for the compressors.
        evaluation: Folder with evaluation.json, the samples and the tasks.
        metrics: The stage's figures.
        summary: What the stage tells about itself (JSON).
        instructions: The .jsonl file that the model was tuned on, for prompts; empty: prompts of the held-out text.
        seed: Seed of the samples.
        task_items: Most items of each task made from the held-out text; 0 leaves the tasks out.
    """
    from modelcore.stages.evaluate import evaluate

    result = evaluate(
        checkpoint=checkpoint.path,
        export=export.path,
        tokens=tokens.path,
        heldout=heldout.path,
        out=evaluation.path,
        instructions=instructions,
        seed=seed,
        task_items=task_items,
        summary=summary.path,
    )
    for name, value in result.numbers().items():
        metrics.log_metric(name, value)
