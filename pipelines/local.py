"""Runs the compiled pipeline on this machine, without a cluster: ``python -m pipelines.local --help``.

KFP's local runner executes the same YAML that a cluster would; this file gives it a run folder, a place for MLflow to
write to, a log one can read, and collects what the stages made.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import datetime
import gc
import os
import shutil
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

from modelcore import logs, threads, tracking
from modelcore.atomic import disk_is_full, write_json
from modelcore.errors import InputError, TakenError, first_line
from modelcore.interrupts import Interrupts
from modelcore.relay import Relay
from modelcore.stages.stage import StageSummary
from pipelines import inputs, publishing, run_folder
from pipelines.make_line import make_line
from pipelines.stage_containers import Containers
from pipelines.stage_log import StageLog
from pipelines.stage_processes import Processes

DEFAULT_RUNS = "runs"
RUNNERS: dict[str, type[Processes] | type[Containers]] = {"subprocess": Processes, "docker": Containers}
DEFAULT_RUNNER = "subprocess"
SWEEP = "--sweep"


class LocalRun:
    """One run of the pipeline on this machine, from its name to its table.

    Args:
        runs: Folder of all runs.
        name: The run's name; a run that stopped half-way is taken up again under its own name.
        parameters: Every parameter of the pipeline by name, but ``run_folder``.
        defaults: The pipeline's own values of them.
        started: When it began, in seconds of Unix time.
        runner: What its stages run in.
        publish: Where the finished run is to be copied; empty: nowhere.
        target: What make is asked for to begin such a run.

    Raises:
        InputError: If a finished run of that name exists, something else stands in the way, or an input is missing.
    """

    def __init__(
        self,
        runs: Path,
        name: str,
        parameters: dict[str, Any],
        defaults: dict[str, Any],
        started: float,
        runner: Processes | Containers,
        publish: str = "",
        target: str = "pipeline",
    ) -> None:
        run_folder.check(runs, name)
        inputs.check(parameters)
        if publish:
            publishing.check(publish, name, runs / name)
        self.given, self.defaults = parameters | {"publish": publish}, defaults | {"publish": ""}
        self.started, self.target = started, target
        self.runs, self.name, self.folder, self.runner = runs, name, runs / name, runner
        self.work = self.folder / run_folder.WORK
        self.parameters = parameters | {"run_folder": _shown(self.folder)}
        self.parameters["checkpoint_uri"] = parameters.get("checkpoint_uri") or str(self.work / "training")

    def run(self, pipeline: Any, interrupts: Interrupts) -> int:
        """Runs the pipeline, collects its outputs and prints the table.

        Args:
            pipeline: The compiled pipeline, loaded.
            interrupts: Told when the run is complete and can no longer be interrupted.

        Returns:
            The exit status: 0, or 1 if a stage failed.

        Raises:
            InputError: If the run is under way in another process.
        """
        with run_folder.only_one(self.folder), contextlib.ExitStack() as opened:
            self.runner.end(self.root)  # of a process that was killed before its stages were
            _prepare_environment(self.runs, self.name)
            tracked, complete = tracking.start_pipeline(self.name, self.parameters, self.folder), False
            opened.callback(lambda: tracked.deliver(complete))  # last: when the relay is closed nothing more comes
            opened.enter_context(Relay(tracked.start_stage))
            file = opened.enter_context(open(self.folder / run_folder.LOG, "a", encoding="utf-8"))
            try:
                if tracked.run_id is not None:
                    tracking.deliver_earlier(self.runs)
                sys.stderr.write(
                    f"run {self.name}: outputs under {_shown(self.folder)}, log in {_shown(Path(file.name))}\n"
                )
                if note := inputs.sample_conversations(self.given, self.defaults):
                    sys.stderr.write(f"note: {note}\n")
                if failure := self._execute(pipeline, StageLog(file, sys.stderr)):
                    tracked.end(failure=failure)
                    sys.stderr.write(f"error: {failure}\n{self.mended()}\n")
                    return 1
                summaries = run_folder.collect(self.root, self.folder)
                seconds = time.time() - self.started
                tracked.log_metrics({"pipeline_seconds": seconds} | _headline(summaries))
                tracked.log_path(self.folder / "report", "report")
                tracked.end()
            except BaseException as error:
                self.runner.end(self.root)
                with contextlib.suppress(Exception):  # what went wrong first is what counts
                    tracked.end(failure=tracking.INTERRUPTED if isinstance(error, KeyboardInterrupt) else str(error))
                raise
            interrupts.ignore()
            write_json(
                self.folder / run_folder.DONE,
                {
                    "name": self.name,
                    "started": datetime.datetime.fromtimestamp(self.started, datetime.UTC).isoformat(
                        timespec="seconds"
                    ),
                    "seconds": round(seconds, 1),
                    "parameters": self.parameters,
                    "mlflow_run_id": tracked.run_id,
                },
            )
            run_folder.point_latest(self.runs, self.name)
            shutil.rmtree(self.work)
            _print_table(summaries, self.folder, seconds)
            self._tell_unregistered(summaries)
            interrupts.heed()
            complete = True
        return 0

    @property
    def root(self) -> Path:
        """KFP's folder of the run."""
        return self.work / "kfp"

    def onward(self) -> str:
        """What to do after the run was interrupted, in one line."""
        return f"What was done is kept; go on with: {self._line(self.given)}"

    def mended(self) -> str:
        """What to do after a stage has failed, in one line; the same command would fail again."""
        where = self._line({}).removeprefix(f"make {self.target} ")
        return f"What was done is kept; correct what is wrong and start again with the same {where}"

    def _line(self, given: dict[str, Any]) -> str:
        defaults = self.defaults | {"runner": DEFAULT_RUNNER}
        return make_line(self.name, _own_runs(self.runs), {"runner": self.runner.name} | given, defaults, self.target)

    def _tell_unregistered(self, summaries: list[StageSummary]) -> None:
        """Says how to register the model, where the registry was away."""
        for results in (summary.results for summary in summaries if summary.stage == "register_model"):
            if results["version"] is None:
                folder = _shown(self.folder)
                sys.stderr.write(
                    f"note: the model is {results['decision']}; register it with: modelcore register "
                    f"--export {folder}/export --evaluation {folder}/report/evaluation "
                    f"--out {folder}/report/registration.json --model-name {results['model_name']}\n"
                )

    def _execute(self, pipeline: Any, log: StageLog) -> str | None:
        """Runs the pipeline with KFP's local runner; returns why it failed, or None."""
        from kfp import local

        shutil.rmtree(self.root, ignore_errors=True)
        warnings.filterwarnings("ignore", message="Task '.*': settings")  # what pods ask for
        with self.runner.running(self.root, self.parameters) as runner:
            local.init(runner=runner, pipeline_root=str(self.root))
            try:
                with contextlib.redirect_stdout(log):
                    pipeline(**self.parameters)
            except RuntimeError:
                return log.failure()
        # What KFP calls a success is one when each stage has left what it writes last.
        lost = run_folder.first_without_summary(self.root)
        return f"stage {lost} ended without its summary" if lost else None


def main(arguments: list[str] | None = None) -> int:
    """Runs the pipeline; returns the exit status: 0, 1 for an error that was explained, 130 or 143 if interrupted."""
    run: LocalRun | None = None
    started = time.time()
    atexit.register(gc.freeze)  # spares the interpreter going over what it is about to forget

    def say_goodbye() -> None:
        sys.stderr.write(f"interrupted. {run.onward()}\n" if run is not None and run.work.exists() else "interrupted\n")

    def end_at_once() -> None:
        if run is not None:
            run.runner.end(run.root, gently=False)
        say_goodbye()

    interrupts = Interrupts(last_words=end_at_once)
    logs.configure()
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        target = "sweep" if SWEEP in arguments else "pipeline"
        pipeline = _load_pipeline() if target == "pipeline" else _load_sweep()
        parser = _parser(pipeline)
        options, defaults = vars(parser.parse_args(arguments)), vars(parser.parse_args([]))
        del options["sweep"], defaults["sweep"]
        runs, name = Path(options.pop("runs")).absolute(), options.pop("name") or _new_name()
        place, kind = options.pop("publish"), options.pop("runner", DEFAULT_RUNNER)
        run_folder.check_name(name)
        if place and publishing.is_finished(runs / name):
            publishing.check_again(runs / name, place)
            run_folder.finish(runs, name)
        elif run_folder.finish(runs, name):  # all of the run but its last moment had been before
            sys.stderr.write(f"run {name} is complete: {_shown(runs / name)}\n")
        else:
            run = LocalRun(runs, name, options, defaults, started, RUNNERS[kind](), place, target)
            if status := run.run(pipeline, interrupts):
                return status
        if place:
            _publish(runs, name, place, interrupts)
        return 0
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        say_goodbye()
        return interrupts.status
    except Exception as error:
        if not disk_is_full(error):
            raise
        sys.stderr.write(f"error: no space left on the disk ({first_line(error)}); free some and run again\n")
        return 1


def _publish(runs: Path, name: str, place: str, interrupts: Interrupts) -> None:
    """Copies a finished run; what stops it is told together with the command that goes on with it."""

    def line(place: str) -> str:
        return make_line(name, _own_runs(runs), {"publish": place}, {"publish": ""})

    interrupts.heed()
    try:
        sys.stdout.write(f"published     {publishing.publish(runs / name, place)}\n")
    except TakenError as error:
        raise InputError(
            f"the run is complete, but not published: {error}; publish it elsewhere: {line('ANOTHER-PLACE')}"
        ) from error
    except InputError as error:
        raise InputError(f"the run is complete, but not published: {error}; publish it with: {line(place)}") from error
    except KeyboardInterrupt:
        sys.stderr.write(f"the run is complete, but not published; go on with: {line(place)}\n")
        raise


def _own_runs(runs: Path) -> str | None:
    """The folder of all runs as a command would name it; None where it need not."""
    return None if runs == Path(DEFAULT_RUNS).absolute() else _shown(runs)


def _load_pipeline() -> Any:
    from kfp import components

    from pipelines.compile import COMPILED

    return components.load_component_from_file(str(COMPILED))


def _load_sweep() -> Any:
    from kfp import components

    from pipelines.compile import FOLDER

    return components.load_component_from_file(str(FOLDER / "gpt-sweep.yaml"))


def _parser(pipeline: Any) -> argparse.ArgumentParser:
    """One option for each of the pipeline's parameters, with its type, default and description."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.local", description="Run the whole pipeline on this machine."
    )
    parser.add_argument("--name", help="name of the run; default: the time")
    parser.add_argument("--runs", default=DEFAULT_RUNS, help="folder of all runs; default: %(default)s")
    parser.add_argument(
        "--publish",
        default="",
        help="path or s3:// prefix to copy the finished run to, under its name; default: nowhere",
    )
    parser.add_argument(
        "--runner",
        default=DEFAULT_RUNNER,
        choices=RUNNERS,
        help="what stages run in: processes, or containers of the images that make images builds; default: %(default)s",
    )
    parser.add_argument(
        SWEEP, action="store_true", help="pretrain in several trials, and go on with the best; see --sweep --help"
    )
    types: dict[str, Any] = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "STRING": str, "LIST": inputs.split_trials}
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
        value = parameter.default_value
        if kind is inputs.split_trials:
            default: Any = "; ".join(trial.string_value for trial in value.list_value.values)
        else:
            default = kind(value.string_value if kind is str else value.number_value)
        text = f"{parameter.description} Default: {'empty' if default == '' else default}"
        parser.add_argument(f"--{key.replace('_', '-')}", type=kind, default=default, help=text.replace("%", "%%"))
    return parser


def _new_name() -> str:
    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


def _prepare_environment(runs: Path, name: str) -> None:
    """What the stages' processes inherit; nothing here changes a result."""
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{runs / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MODELCORE_CACHE": str(runs / ".cache"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        **threads.SHARED_CORES,
    }
    for key, value in environment.items():
        os.environ.setdefault(key, value)
    os.environ |= {"KFP_RUN_ID": name, "KFP_RUN_NAME": name, "MODELCORE_WORK": str(runs / name / run_folder.WORK)}
    os.environ.pop("MLFLOW_RUN_ID", None)
    tracking.ensure_experiment(artifacts=runs / "mlartifacts")


def _headline(summaries: list[StageSummary]) -> dict[str, float]:
    """The few figures by which pipeline runs are compared."""
    stages = {summary.stage: summary for summary in summaries}
    figures = {
        "peak_memory_mib": max(summary.peak_memory_mib for summary in summaries),
        "work_seconds": sum(summary.work_seconds for summary in summaries),
    }
    for key in ("bits_per_byte", "pretrained_bits_per_byte", "perplexity"):
        if isinstance(value := stages["evaluate"].results.get(key), int | float):
            figures[key] = float(value)
    return figures


def _print_table(summaries: list[StageSummary], folder: Path, seconds: float) -> None:
    from modelcore.evaluation.report import WIDTH, render_table

    sys.stdout.write(render_table(summaries, run_folder=_shown(folder), total_seconds=seconds) + "\n")
    checked = next(summary.results for summary in summaries if summary.stage == "validate_data")
    if checked["bad_rows"]:
        place = _shown(folder / run_folder.LAYOUT["validate-data", "quarantine"])
        text = f"{checked['bad_rows']:,} of {checked['documents']:,} documents were refused: {checked['refused']}"
        sys.stdout.write(f"\n{textwrap.fill(text, WIDTH)}\nall of them, with reasons: {place}/quarantine.jsonl\n")


def _shown(path: Path) -> str:
    """``path`` as a person in the working directory would write it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
