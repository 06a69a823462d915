"""The folder of a run, ``runs/<name>``: may it be used, is it free, and where each output belongs in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from modelcore.errors import InputError
from modelcore.stages.outputs import check_writable
from modelcore.stages.stage import StageSummary

STAGES = (
    "validate_data",
    "train_tokenizer",
    "tokenize_corpus",
    "pretrain",
    "finetune_lora",
    "convert_checkpoint",
    "evaluate",
    "register_model",
    "write_report",
)
# Where each output of a task goes in the run's folder.
LAYOUT = {
    ("validate-data", "train_corpus"): "data/train",
    ("validate-data", "heldout_corpus"): "data/heldout",
    ("validate-data", "quarantine"): "data/quarantine",
    ("validate-data", "data_docs"): "report/data_docs",
    ("train-tokenizer", "tokenizer"): "tokenizer",
    ("tokenize-corpus", "tokens"): "tokens",
    ("pretrain", "checkpoint"): "checkpoint",
    ("finetune-lora", "adapter"): "adapter",
    ("convert-checkpoint", "export"): "export",
    ("evaluate", "evaluation"): "report/evaluation",
    ("register-model", "registration"): "report/registration.json",
    ("write-report", "page"): "report/index.html",
}
LATEST = "latest"
WORK = ".work"
LOG = "pipeline.log"
DONE = "run.json"
# In a sweep pretraining is many tasks, and this one has the outputs of the best of them.
_BEST = {"pretrain": "choose-trial"}
_SWEEP = ("choose-trial", "page", "report/sweep.html")
_RESERVED = (LATEST, "mlflow.db", "mlartifacts")


def check(runs: Path, name: str) -> None:
    """Makes sure that a run of that name can begin, or go on, in ``runs``.

    Raises:
        InputError: If the name is none for a folder or is taken, or something else stands in the way.
    """
    check_name(name)
    folder = runs / name
    check_writable(folder / WORK / "lock")
    latest = runs / LATEST
    if latest.exists() and not latest.is_symlink():
        raise InputError(f"{latest} should be a link to the newest run and is none; move it away")
    if (folder / DONE).exists():
        raise InputError(f"run {name!r} is finished already ({folder}); choose another name or delete that folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / WORK).exists() and not (folder / LOG).exists():
        raise InputError(f"{folder} holds something else than a run; it is left as it is, choose another name")


def check_name(name: str) -> None:
    """Makes sure that a run may be called so.

    Raises:
        InputError: If the name is none for a folder, or is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name in _RESERVED:
        raise InputError(
            f"run name {name!r} is not usable; take up to 100 letters, digits, '.', '_' and '-', "
            f"beginning with a letter or digit, and none of {', '.join(_RESERVED)}"
        )


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's folder.

    Raises:
        InputError: If one is in it.
    """
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with open(folder / WORK / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"run {folder.name!r} is under way in another process; wait for it or choose another name"
            ) from None
        yield


def finish(runs: Path, name: str) -> bool:
    """Does what a run had not done yet that was killed when its outputs were complete; whether there was any.

    Raises:
        InputError: If it is under way still.
    """
    folder = runs / name
    if not (folder / DONE).exists() or not (folder / WORK).exists():
        return False
    with only_one(folder):
        newest = runs / LATEST / DONE
        if not newest.exists() or newest.stat().st_mtime <= (folder / DONE).stat().st_mtime:
            point_latest(runs, name)
        shutil.rmtree(folder / WORK)
    return True


def first_without_summary(root: Path) -> str | None:
    """The first stage that left no summary in KFP's ``root``; None where all have."""
    (pipeline_folder,) = root.iterdir()
    return next((stage for stage in STAGES if not (_task(pipeline_folder, stage) / "summary").is_file()), None)


def collect(root: Path, folder: Path) -> list[StageSummary]:
    """Moves the tasks' outputs from KFP's ``root`` to their places in the run's folder; returns the summaries."""
    (pipeline_folder,) = root.iterdir()
    places = {_task(pipeline_folder, task) / output: folder / place for (task, output), place in LAYOUT.items()}
    task, output, place = _SWEEP
    if (pipeline_folder / task / output).is_file():
        places[pipeline_folder / task / output] = folder / place
    summaries = {
        _task(pipeline_folder, stage) / "summary": folder / "report" / "summaries" / f"{stage}.json" for stage in STAGES
    }
    for source, destination in (places | summaries).items():
        if destination.is_dir():
            shutil.rmtree(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, destination)
    return [StageSummary.load(path) for path in summaries.values()]


def _task(pipeline_folder: Path, stage: str) -> Path:
    """Where KFP's local runner keeps the outputs of the task that a stage is."""
    best = pipeline_folder / _BEST.get(stage, "")
    return best if stage in _BEST and best.is_dir() else pipeline_folder / stage.replace("_", "-")


def point_latest(runs: Path, name: str) -> None:
    """Makes ``runs/latest`` a link to the newest complete run, in one step."""
    fresh = runs / f".latest-{os.getpid()}"
    fresh.symlink_to(name)
    os.replace(fresh, runs / LATEST)
