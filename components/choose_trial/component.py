"""KFP component: take on the best trial of a sweep."""

from typing import List  # noqa: UP035 (KFP reads the type by this name)

from kfp import dsl

from components.images import MODEL_IMAGE


@dsl.component(base_image=MODEL_IMAGE, install_kfp_package=False)
def choose_trial(
    trials: dsl.Input[List[dsl.Model]],  # noqa: UP006
    summaries: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    checkpoint: dsl.Output[dsl.Model],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Artifact],
) -> None:
    """Takes on the trial that needs the fewest bits per byte of held-out text; failed ones are passed over.

    Args:
        trials: What the trials wrote.
        summaries: Their summaries, in the same order.
        checkpoint: The best trial's model.
        page: The trials side by side.
        metrics: The stage's figures.
        summary: The best trial's own summary (JSON).
    """
    from modelcore.stages.choose_trial import choose_trial

    result = choose_trial(
        trials=[trial.path for trial in trials],
        summaries=[one.path for one in summaries],
        out=checkpoint.path,
        page=page.path,
        summary=summary.path,
    )
    for name, value in result.numbers().items():
        metrics.log_metric(name, value)
