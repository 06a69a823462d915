"""The pipeline that pretrains in several ways and takes the best on: tuned, converted, evaluated, through the gate."""

from __future__ import annotations

from typing import Any

from kfp import dsl

from components.choose_trial.component import choose_trial
from components.pretrain_trial.component import pretrain_trial
from pipelines.enterprise import ENTERPRISE
from pipelines.gpt import gpt_stages
from pipelines.profile import FREE_TIER, Profile, Setting, Start, make_pipeline

NAME = "aic-ai-poc-gpt-sweep"
DESCRIPTION = "Pretrains a small GPT with several learning rates and sizes, and goes on with the best."

AT_ONCE = 2  # trials; kfp's local runner takes no more
TRIALS = [
    f"learning_rate={learning_rate} n_layers={n_layers}" for n_layers in (2, 4) for learning_rate in (0.005, 0.01, 0.02)
]
SETTINGS = [
    Setting(
        "trials",
        TRIALS,
        "What each trial changes: settings of training and fields of the model, such as "
        '"learning_rate=0.003 n_layers=2".',
    )
]


def sweep_stages(*, profile: Profile, trials: Any, **given: Any) -> None:
    """The stages of :func:`pipelines.gpt.gpt_stages`, with a sweep in place of pretraining."""

    def pretrain_in_trials(run: Start, **inputs: Any) -> Any:
        with dsl.ParallelFor(trials, name="trials", parallelism=AT_ONCE) as trial:
            tried = run(pretrain_trial, trial=trial, **inputs)
        return run(
            choose_trial,
            trials=dsl.Collected(tried.outputs["checkpoint"]),
            summaries=dsl.Collected(tried.outputs["summary"]),
        )

    gpt_stages(profile=profile, pretraining=pretrain_in_trials, **given)


sweep_pipeline, sweep_pipeline_enterprise = (
    make_pipeline(sweep_stages, profile, name=NAME, description=DESCRIPTION, like=gpt_stages, settings=SETTINGS)
    for profile in (FREE_TIER, ENTERPRISE.without("pretrain"))
)
