"""Stage: one trial of a sweep, which is pretraining by a recipe with something changed in it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from modelcore.atomic import atomic_directory, write_json, write_text
from modelcore.cluster.workspace import find_workspace
from modelcore.errors import InputError, first_line
from modelcore.gptx import GPTConfig
from modelcore.stages.pretrain import pretrain
from modelcore.stages.stage import StageSummary
from modelcore.training import DEFAULT_RECIPE, Recipe, load_recipe
from modelcore.training.checkpoint_list import remove_checkpoints
from modelcore.training.recipe import TrainingSettings

logger = logging.getLogger(__name__)

FAILURE_FILE = "failure.json"

_ARGUMENTS = ("learning_rate", "steps", "batch_size", "sequence_length", "optimizer", "seed")  # of pretrain itself


def pretrain_trial(
    *,
    tokens: Path | str,
    out: Path | str,
    trial: str,
    preset: str = DEFAULT_RECIPE,
    steps: int = 0,
    batch_size: int = 0,
    sequence_length: int = 0,
    learning_rate: float = 0.0,
    optimizer: Literal["recipe", "adamw", "muon"] = "recipe",
    seed: int = 0,
    checkpoint_uri: str = "",
    summary: Path | str,
) -> StageSummary:
    """Pretrains by a recipe with changes; a trial that fails or diverges says so, and does not end the sweep.

    It is tracked as pretraining is, under the trial's name, with what it changed among its parameters.

    Args:
        tokens: As of :func:`modelcore.stages.pretrain.pretrain`, and so the arguments that are not named here.
        out: Where the model goes. Of a trial that failed it holds ``failure.json`` alone: ``trial`` and ``reason``.
        trial: What is changed: settings of training, fields of the model, such as ``learning_rate=0.003 n_layers=2``.
            What it says counts before the argument of that name.
        preset: The recipe that is changed.
        steps: As of pretrain.
        batch_size: As of pretrain.
        sequence_length: As of pretrain.
        learning_rate: As of pretrain.
        optimizer: As of pretrain.
        seed: As of pretrain.
        checkpoint_uri: Place for checkpoints, this trial's in a folder there; empty: in the workspace that jobs share,
            where there is one (:mod:`modelcore.cluster.workspace`), so that a trial whose pod was stopped goes on from
            them in the next; else beside ``out``. Those without a place of their own go when the trial is over.
        summary: JSON file for the summary of pretraining; of a trial that failed one without results but ``failure``.

    Returns:
        The summary.

    Raises:
        InputError: If ``trial`` changes something that there is not.
    """
    out, changes = Path(out), parse_trial(trial)
    given: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "seed": seed,
    } | {key: changes[key] for key in _ARGUMENTS if key in changes}
    name = trial_name(trial)
    own = None if checkpoint_uri else _place_in_workspace(out, [str(tokens), trial, preset, given])
    place = f"{checkpoint_uri.rstrip('/')}/{name}" if checkpoint_uri else str(own or "")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            file = Path(scratch) / f"{name}.yaml"
            _write_recipe(file, load_recipe(preset), changes)
            done = pretrain(tokens=tokens, out=out, preset=str(file), checkpoint_uri=place, summary=summary, **given)
        except Exception as error:  # whatever it was, the other trials may do better
            reason = first_line(error)
            logger.warning("trial=%s failed: %s", name, reason)
            with atomic_directory(out) as fresh:
                write_json(fresh / FAILURE_FILE, {"trial": name, "reason": reason})
            failed = StageSummary("pretrain", parameters={"trial": name}, results={"failure": reason})
            failed.save(Path(summary))
            done = failed
    if own is not None:
        remove_checkpoints(own)
    return done


def _place_in_workspace(out: Path, asked: Sequence[Any]) -> Path | None:
    """Where a trial's checkpoints outlive its pod; None where there is no workspace.

    KFP gives each task of each run a place of its own for its output, the same one to all attempts at it.
    """
    root = find_workspace()
    if root is None:
        return None
    identity = json.dumps([str(out.absolute()), *asked])
    return root / "trials" / hashlib.sha256(identity.encode()).hexdigest()[:20]


def parse_trial(trial: str) -> dict[str, Any]:
    """What a trial changes: values, with their types, by the names of settings and fields.

    Raises:
        InputError: If it names something that is no setting or field, or twice the same.
    """
    import yaml

    changes: dict[str, Any] = {}
    for word in trial.split():
        key, equals, value = word.partition("=")
        if not equals or not value or key in changes:
            raise InputError(f"trial {trial!r}: {word!r} is no change; write key=value, each key once")
        if key not in _known():
            raise InputError(f"trial {trial!r}: there is no {key!r} to change; known: {', '.join(sorted(_known()))}")
        with contextlib.suppress(ValueError):  # YAML takes 1e-3 for a text
            changes[key] = float(value)
        if key not in changes or value.lstrip("+-").isdigit():
            changes[key] = yaml.safe_load(value)
    return changes


def trial_name(trial: str) -> str:
    """A trial as a name of files and runs; the recipe itself where nothing is changed."""
    return ",".join(trial.split()).replace("/", "_") or "unchanged"


def _known() -> set[str]:
    model = {field.name for field in dataclasses.fields(GPTConfig)} - {"vocab_size", "context_length"}
    return model | {field.name for field in dataclasses.fields(TrainingSettings)}


def _write_recipe(file: Path, recipe: Recipe, changes: dict[str, Any]) -> None:
    """Writes the recipe, changed but for what is an argument of pretrain, as a file that pretrain takes."""
    import yaml

    training = {field.name for field in dataclasses.fields(TrainingSettings)}
    fields = recipe.to_dict()
    fields["overrides"] |= {key: value for key, value in changes.items() if key not in training}
    fields["training"] |= {key: value for key, value in changes.items() if key in training and key not in _ARGUMENTS}
    write_text(file, yaml.safe_dump(fields))
