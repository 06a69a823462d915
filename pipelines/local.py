"""Runs the compiled pipeline on this machine, without a cluster: ``python -m pipelines.local --help``.

KFP's local runner executes the same YAML that a cluster would; this file gives it a run folder, a place for MLflow to
write to, a log one can read, and collects what the stages made.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from kfp import components, local

from modelcore import tracking
from modelcore.atomic import write_json
from modelcore.errors import InputError
from modelcore.stages.stage import StageSummary
from pipelines.compile import COMPILED
from pipelines.stage_log import StageLog

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


def main(arguments: list[str] | None = None) -> int:
    """Runs the pipeline; returns the exit status."""
    pipeline = components.load_component_from_file(str(COMPILED))
    options = vars(_parser(pipeline).parse_args(arguments))
    runs, name = Path(options.pop("runs")).absolute(), options.pop("name")
    parameters = {key: value for key, value in options.items() if value is not None}
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(pipeline, runs, name or _new_name(), parameters)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def run(pipeline: Any, runs: Path, name: str, parameters: dict[str, Any]) -> int:
    """Runs the pipeline in ``runs/name``, collects its outputs there and prints the table.

    Args:
        pipeline: The compiled pipeline, loaded.
        runs: Folder of all runs.
        name: The run's name; a run that stopped half-way is taken up again under its own name.
        parameters: Pipeline parameters that differ from their defaults.

    Returns:
        The exit status: 0, or 1 if a stage failed.

    Raises:
        InputError: If a finished run of that name exists, or one is under way.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == "latest":
        raise InputError(f"run name {name!r} is not usable; take letters, digits, '.', '_' and '-', but not 'latest'")
    folder = runs / name
    if (folder / "run.json").exists():
        raise InputError(f"run {name!r} is finished already ({folder}); choose another name or delete that folder")
    work = folder / ".work"
    work.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with _only_one(work / "lock", name), open(folder / "pipeline.log", "a", encoding="utf-8") as file:
        _prepare_environment(runs, name, folder)
        parameters = parameters | {"run_folder": _shown(folder)}
        parameters.setdefault("checkpoint_uri", str(work / "training"))
        tracked = tracking.start_pipeline(name)
        tracked.log_params(parameters)
        sys.stderr.write(f"run {name}: outputs under {_shown(folder)}, log in {_shown(folder / 'pipeline.log')}\n")
        log = StageLog(file, sys.stderr)
        failure = _execute(pipeline, work / "kfp", parameters, log)
        if failure is not None:
            tracked.end(failure=failure)
            sys.stderr.write(
                f"error: {failure}\nWhat was done is kept; go on with: make pipeline NAME={name} (same parameters)\n"
            )
            return 1
        summaries = _collect(work / "kfp", folder)
        seconds = time.time() - started
        tracked.log_metrics({"pipeline_seconds": seconds} | _headline(summaries))
        tracked.log_path(folder / "report", "report")
        tracked.end()
        write_json(
            folder / "run.json",
            {
                "name": name,
                "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
                "seconds": round(seconds, 1),
                "parameters": parameters,
                "mlflow_run_id": tracked.run_id,
            },
        )
    shutil.rmtree(work)
    _point_latest(runs, name)
    _print_table(summaries, folder, seconds)
    return 0


def _parser(pipeline: Any) -> argparse.ArgumentParser:
    """One option for each of the pipeline's parameters, with its type, default and description."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.local", description="Run the whole pipeline on this machine."
    )
    parser.add_argument("--name", help="name of the run; default: the time")
    parser.add_argument("--runs", default="runs", help="folder of all runs; default: %(default)s")
    types = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "STRING": str}
    spec = pipeline.pipeline_spec
    for key, parameter in sorted(spec.root.input_definitions.parameters.items()):
        if key == "run_folder":
            continue
        kind = types[
            type(parameter)
            .DESCRIPTOR.fields_by_name["parameter_type"]
            .enum_type.values_by_number[parameter.parameter_type]
            .name
        ]
        default = parameter.default_value.string_value or parameter.default_value.number_value
        text = f"{parameter.description} Default: {kind(default) if default or kind is not str else 'empty'}"
        parser.add_argument(f"--{key.replace('_', '-')}", type=kind, help=text.replace("%", "%%"))
    return parser


def _new_name() -> str:
    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


def _prepare_environment(runs: Path, name: str, folder: Path) -> None:
    """What the stages' processes inherit; nothing here changes a result."""
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{runs / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MODELCORE_CACHE": str(runs / ".cache"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }
    for key, value in environment.items():
        os.environ.setdefault(key, value)
    os.environ |= {"KFP_RUN_ID": name, "KFP_RUN_NAME": name}
    os.environ.pop("MLFLOW_RUN_ID", None)
    tracking.ensure_experiment(artifacts=runs / "mlartifacts")


def _execute(pipeline: Any, root: Path, parameters: dict[str, Any], log: StageLog) -> str | None:
    """Runs the pipeline with KFP's local runner; returns why it failed, or None."""
    shutil.rmtree(root, ignore_errors=True)
    warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom")
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    try:
        with contextlib.redirect_stdout(log):
            pipeline(**parameters)
    except RuntimeError:
        return log.failure()
    except KeyboardInterrupt:
        for child in psutil.Process().children(recursive=True):
            child.terminate()
        return "interrupted"
    return None


def _collect(root: Path, folder: Path) -> list[StageSummary]:
    """Moves the tasks' outputs to their places in the run's folder and returns the stages' summaries."""
    (pipeline_folder,) = root.iterdir()
    for (task, output), place in LAYOUT.items():
        destination = folder / place
        if destination.is_dir():
            shutil.rmtree(destination)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(pipeline_folder / task / output, destination)
    summaries = []
    for stage in STAGES:
        source = pipeline_folder / stage.replace("_", "-") / "summary"
        destination = folder / "report" / "summaries" / f"{stage}.json"
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, destination)
        summaries.append(StageSummary.load(destination))
    return summaries


def _headline(summaries: list[StageSummary]) -> dict[str, float]:
    """The few figures by which pipeline runs are compared."""
    stages = {summary.stage: summary for summary in summaries}
    figures = {"peak_memory_mib": max(summary.peak_memory_mib for summary in summaries)}
    for key in ("bits_per_byte", "pretrained_bits_per_byte", "perplexity"):
        if isinstance(value := stages["evaluate"].results.get(key), int | float):
            figures[key] = float(value)
    return figures


def _print_table(summaries: list[StageSummary], folder: Path, seconds: float) -> None:
    from modelcore.evaluation.report import render_table

    sys.stdout.write(render_table(summaries, run_folder=_shown(folder), total_seconds=seconds) + "\n")


def _point_latest(runs: Path, name: str) -> None:
    """Makes ``runs/latest`` a link to the newest complete run, in one step."""
    fresh = runs / f".latest-{os.getpid()}"
    fresh.symlink_to(name)
    os.replace(fresh, runs / "latest")


def _shown(path: Path) -> str:
    """``path`` as a person in the working directory would write it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextlib.contextmanager
def _only_one(lock: Path, name: str) -> Iterator[None]:
    with open(lock, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"run {name!r} is under way in another process; wait for it or choose another name"
            ) from None
        yield


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
