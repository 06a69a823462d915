"""What a run on this machine reads, looked at before its first stage: a misspelt name should not cost minutes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import modelcore
from modelcore import storage
from modelcore.errors import InputError

_RECIPES = Path(modelcore.__file__).parent / "training" / "recipes"
_PLACES = {
    "corpus": "give a file, a folder, or s3://bucket/prefix",
    "heldout": "give a file, a folder, or s3://bucket/prefix, or leave it empty",
    "instructions": "give a .jsonl file, here or at s3://bucket/key",
}
# The stages' own, which import torch; those that come late in a run would refuse a misspelt one after hours.
CHOICES = {
    "tokenizer_algorithm": ("unigram", "bpe"),
    "optimizer": ("recipe", "adamw", "muon"),
    "parallel": ("recipe", "ddp", "fsdp"),
    "lora_quantize": ("none", "int8", "nf4"),
}


def check(parameters: Mapping[str, Any]) -> None:
    """Makes sure that what a run is to read exists, and that its recipe, choices and trials are right.

    Args:
        parameters: The pipeline's parameters by name.

    Raises:
        InputError: If something is missing or not valid, or S3 refuses.
    """
    for key, hint in _PLACES.items():
        value = parameters[key]
        if not value and key != "heldout":
            raise InputError(f"{key} is empty; {hint}")
        if value and not storage.exists(value):
            raise InputError(f"{key} {value!r} does not exist; {hint}")
    check_recipe_name(parameters["preset"])
    check_choices(parameters)
    check_trials(parameters)


def check_recipe_name(preset: str) -> None:
    """Makes sure that a recipe is one.

    Raises:
        InputError: If it is none of the library's, and no file with a valid one.
    """
    if preset not in [path.stem for path in _RECIPES.glob("*.yaml")]:
        from modelcore.training import load_recipe  # with torch, in seconds; the library's own need not wait for it

        load_recipe(preset)


def check_choices(parameters: Mapping[str, Any]) -> None:
    """Makes sure that parameters that name one of a few things do.

    Raises:
        InputError: If one does not.
    """
    for key, choices in CHOICES.items():
        if (value := parameters.get(key, choices[0])) not in choices:
            raise InputError(f"{key} is {value!r}; give one of {', '.join(choices)}")


def split_trials(text: str) -> list[str]:
    """Trials as they are typed: what each changes, a semicolon between one and the next."""
    return [trial.strip() for trial in text.split(";") if trial.strip()]


def check_trials(parameters: Mapping[str, Any]) -> None:
    """Makes sure that the trials of a sweep change what there is; other pipelines have none.

    Raises:
        InputError: If one does not, two are the same, or there is none.
    """
    if "trials" not in parameters:
        return
    from modelcore.stages.pretrain_trial import parse_trial, trial_name

    names = []
    for trial in parameters["trials"]:
        parse_trial(trial)
        names.append(trial_name(trial))
        if names.count(names[-1]) > 1:
            raise InputError(f"trial {trial!r} is given twice; each keeps its checkpoints under what it changes")
    if not names:
        raise InputError('trials is empty; give some, such as "learning_rate=0.005; learning_rate=0.01 n_layers=4"')


def sample_conversations(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """A line to say where one's own text meets the sample's conversations; None where it does not."""
    if parameters["corpus"] == defaults["corpus"] or parameters["instructions"] != defaults["instructions"]:
        return None
    return (
        f"the model will be tuned on the sample's dialogue ({parameters['instructions']}), not on conversations "
        "of your own; give those with INSTRUCTIONS=pairs.jsonl"
    )
