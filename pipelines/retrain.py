"""The pipeline that is run again and again: new text is looked at, and trained on if it is of another kind."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from kfp import dsl

from components.check_drift.component import check_drift
from modelcore.stages import check_drift as stage
from pipelines.enterprise import ENTERPRISE
from pipelines.gpt import gpt_stages
from pipelines.profile import FREE_TIER, ON_A_CLUSTER, Profile, Setting, make_pipeline

NAME = "aic-ai-poc-gpt-retrain"
DESCRIPTION = "Trains a GPT anew if the text is of another kind than its champion was trained on."

_SHARED = ("corpus", "model_name", "text_field", "seed")  # with the pipeline that trains


def _settings() -> list[Setting]:
    """What the check can be told, with the stage's own defaults and the component's descriptions."""
    defaults = {key: value.default for key, value in inspect.signature(stage.check_drift).parameters.items()}
    inputs = check_drift.component_spec.inputs
    return [Setting(name, defaults[name], inputs[name].description) for name in inputs if name not in _SHARED]


def retrain_stages(*, profile: Profile, **given: Any) -> None:
    """Looks at the corpus, and runs the stages of :func:`pipelines.gpt.gpt_stages` on it if it has drifted."""
    names = [setting.name for setting in SETTINGS]
    asked = {name: given.pop(name) for name in names} | {name: given[name] for name in _SHARED}
    checked = profile.task(check_drift, {}, **asked)
    # The plain output, for kfp's local runner finds no named one in a condition.
    with dsl.If(checked.outputs["Output"] == "train", name="drifted"):
        gpt_stages(profile=profile, **given)


SETTINGS = _settings()
retrain_pipeline, retrain_pipeline_enterprise = (
    make_pipeline(retrain_stages, profile, name=NAME, description=DESCRIPTION, like=gpt_stages, settings=SETTINGS)
    for profile in (dataclasses.replace(FREE_TIER, defaults=ON_A_CLUSTER), ENTERPRISE)
)
