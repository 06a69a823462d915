"""Stage: put the exported model into the registry and decide who is the champion."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelcore import registry, tracking
from modelcore.atomic import write_json
from modelcore.errors import InputError, first_line
from modelcore.evaluation.gate import Score, decide
from modelcore.files import content_digest
from modelcore.stages.check_drift import REFERENCE
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Stage, StageSummary

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0
REGISTRATION = Output("registration", mark='"model_name"')
UNREGISTERED = {
    "version": None,
    "bits_per_byte": None,
    "champion": False,
    "champion_version": None,
    "champion_bits_per_byte": None,
    "decision": "not registered, for MLflow could not be reached",
}


def register_model(
    *, export: Path | str, evaluation: Path | str, out: Path | str, model_name: str, summary: Path | str | None = None
) -> StageSummary:
    """Registers ``export`` as a new version: ``@candidate`` always, ``@champion`` only if the gate says so.

    Run again for the same pipeline run and model, it finds the version it made before. A server that is away is waited
    for, ``PATIENCE_SECONDS``. Then the stage fails; but in a run on this machine, which should not lose its report and
    its folder for that, it ends without a version, and says so.

    Args:
        export: Hugging Face folder of the model.
        evaluation: Folder with evaluation.json, from the evaluate stage.
        out: JSON file to write the version and the decision to.
        model_name: Name in the registry.
        summary: JSON file for the stage's summary, or None.

    Raises:
        InputError: If the evaluation does not tell bits per byte, no tracking server is configured, or it stays away.
    """
    export, out = Path(export), Path(out)
    with Stage("register_model", {"model_name": model_name}, outputs={out: REGISTRATION}, summary=summary) as stage:
        registry.check_name(model_name)
        if not (export / "config.json").is_file():
            raise InputError(f"{export} is no exported model: it has no config.json")
        score = _read_score(Path(evaluation) / "evaluation.json")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise InputError("MLFLOW_TRACKING_URI is not set; the model registry needs it: sqlite:///mlflow.db will do")
        try:
            registration = _register(export, score, model_name, stage.run)
        except Exception as error:
            if not (tracking.is_buffered_by_driver() and registry.is_away(error)):
                raise
            logger.warning("model=%s not registered: %s", model_name, first_line(error))
            registration = UNREGISTERED
        stage.results.update({"model_name": model_name} | registration)
        tags = {"gate": registration["decision"]}
        if registration["version"] is not None:
            tags["model_version"] = f"{model_name}/{registration['version']}"
        stage.run.set_tags(tags)
        write_json(out, stage.results)
        stage.run.log_path(out)
        if (reference := Path(evaluation) / REFERENCE).is_dir():  # an earlier version's evaluation has none
            stage.run.log_path(reference, REFERENCE)
    return stage.summary


def _register(export: Path, score: Score, model_name: str, run: tracking.Run) -> dict[str, Any]:
    """Makes the version, or finds it, and moves the aliases; returns what there is to tell."""
    run_id = run.known_id(PATIENCE_SECONDS)
    if run_id is None:
        raise registry.AwayError(
            f"MLflow did not answer in {PATIENCE_SECONDS:.0f} s, and the registry needs it; "
            "`modelcore register` registers the model later"
        )
    champion = registry.find_alias(model_name, "champion")
    reigning = _reigning_score(champion.tags) if champion is not None else None
    identity = {
        "pipeline_run": os.environ.get("KFP_RUN_ID", run_id),
        "export_sha256": content_digest(export),
    }
    made_before = registry.find_version(model_name, identity)
    if made_before is None:
        tags = identity | {"bits_per_byte": repr(score.bits_per_byte), "heldout_digest": score.heldout_digest}
        version = registry.register_huggingface(model_name, export, run_id, tags)
    else:
        version = made_before.version
    registry.set_alias(model_name, "candidate", version)
    decision = decide(score, reigning)
    promoted = decision.promote or (champion is not None and champion.version == version)
    if decision.promote:
        registry.set_alias(model_name, "champion", version)
    leading = score.bits_per_byte if promoted or reigning is None else reigning.bits_per_byte
    return {
        "version": version,
        "bits_per_byte": score.bits_per_byte,
        "champion": promoted,
        "champion_version": version if promoted or champion is None else champion.version,
        "champion_bits_per_byte": leading if math.isfinite(leading) else None,  # JSON has no NaN
        "decision": decision.reason,
    }


def _reigning_score(tags: Mapping[str, str]) -> Score:
    """The score that the champion's tags tell; NaN where somebody wrote something else there."""
    try:
        bits_per_byte = float(tags.get("bits_per_byte", "nan"))
    except ValueError:
        bits_per_byte = math.nan
    return Score(bits_per_byte, tags.get("heldout_digest", ""))


def _read_score(path: Path) -> Score:
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        score = Score(float(figures["bits_per_byte"]), str(figures["heldout_digest"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no evaluation with bits_per_byte and heldout_digest ({error})") from error
    if not math.isfinite(score.bits_per_byte):
        raise InputError(f"{path} gives {score.bits_per_byte} bits per byte; a model so broken is not registered")
    return score
