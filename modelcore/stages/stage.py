"""What every stage shares: tracking, time, peak memory, the cache, and the summary it leaves behind."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelcore import launch, logs, tracking
from modelcore.atomic import disk_is_full, write_json
from modelcore.errors import InputError, first_line
from modelcore.loading import loading_seconds
from modelcore.machine import process_seconds
from modelcore.metrics_endpoint import MetricsEndpoint
from modelcore.stages.cache import StageCache
from modelcore.stages.outputs import Output

logger = logging.getLogger(__name__)

Scalar = str | int | float | bool | None


@dataclass
class StageSummary:
    """What a stage tells about itself.

    Attributes:
        stage: The stage's name, for example ``pretrain``.
        seconds: Wall time since the process started, imports included.
        peak_memory_mib: Largest resident memory of the process so far, MiB.
        cached: Whether the outputs came from the cache.
        parameters: What the stage was asked to do.
        results: Figures and short texts it found.
        series: Columns to draw pictures from, by picture: ``{"loss_curve": {"step": [...], "loss": [...]}}``.
        work_seconds: Of ``seconds``, the stage's body, without starting, loading libraries and preparing MLflow.
    """

    stage: str
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    cached: bool = False
    parameters: dict[str, Scalar] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    series: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    work_seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Writes the summary as JSON."""
        write_json(Path(path), dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> StageSummary:
        """Reads what :meth:`save` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def numbers(self) -> dict[str, float]:
        """The finite numbers among the results, with the stage's time and peak memory."""
        numbers = {
            key: float(value)
            for key, value in self.results.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        return numbers | {
            "stage_seconds": self.seconds,
            "work_seconds": self.work_seconds,
            "peak_memory_mib": self.peak_memory_mib,
        }


class Stage:
    """Runs the body of a stage: tracks it in MLflow, times it, and writes its summary at the end.

    Used as a context manager. When the block ends well the summary is complete (and written, if a file was
    given); when it fails the tracked run is marked failed with the error's message.

    Args:
        name: The stage's name; also the name of its MLflow run.
        parameters: What decides the stage's result, logged once.
        outputs: What the block will write, and where; checked before it begins, so that no work is lost to a bad path.
        summary: Where to write the summary, or None to only return it.

    Raises:
        InputError: When it begins, if an output's place holds something that no such stage wrote.
    """

    def __init__(
        self,
        name: str,
        parameters: dict[str, Scalar],
        *,
        outputs: Mapping[Path, Output] | None = None,
        summary: Path | str | None = None,
    ) -> None:
        self.summary = StageSummary(name, parameters=parameters)
        self._outputs = outputs or {}
        self.run = tracking.Run()
        self._summary_file = Path(summary) if summary is not None else None
        self._cache = StageCache.from_environment()
        self._cache_key: str | None = None
        self._endpoint: MetricsEndpoint | None = None

    @property
    def results(self) -> dict[str, Any]:
        """Figures and short texts found, by name; the numbers among them become MLflow metrics at the end."""
        return self.summary.results

    @property
    def series(self) -> dict[str, dict[str, list[Any]]]:
        """Columns to draw pictures from, by picture."""
        return self.summary.series

    def __enter__(self) -> Self:
        logs.configure()
        report_input_errors_in_one_line()
        atexit.register(gc.freeze)  # spares the interpreter going over what it is about to forget: a second with torch
        logger.info("stage=%s status=started", self.summary.stage)
        try:
            for path, output in self._outputs.items():
                output.check(path)
            self.run = tracking.start_stage(self.summary.stage, next(iter(self._outputs), None))
            self.run.log_params(self.summary.parameters)
            self._endpoint = MetricsEndpoint.from_environment(self.summary.stage)
        except Exception as error:
            self._fail(error)
            raise
        self._began, self._loaded = time.monotonic(), loading_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
        loaded = loading_seconds() - self._loaded
        self.summary.work_seconds = round(time.monotonic() - self._began - loaded, 2)
        self.summary.seconds = round(process_seconds(), 2)
        self.summary.peak_memory_mib = round(peak_memory_mib(), 1)
        if error is None:
            try:
                self._finish()
            except Exception as late:
                self._fail(late)
                raise
        else:
            self._fail(error)

    def _finish(self) -> None:
        self.run.log_metrics(self.summary.numbers())
        self.run.set_tags({"cached": str(self.summary.cached).lower()})
        if self._summary_file is not None and launch.rank() == 0:
            self.summary.save(self._summary_file)
        self.run.end()
        logger.info(
            "stage=%s status=done seconds=%.1f peak_memory_mib=%.0f cached=%s",
            self.summary.stage,
            self.summary.seconds,
            self.summary.peak_memory_mib,
            self.summary.cached,
        )

    def _fail(self, error: BaseException) -> None:
        """Marks the run failed and logs why; what a full disk or MLflow raised is raised as an InputError instead."""
        explained = None
        if not isinstance(error, InputError):
            explained = tracking.fault_of(error)
            if disk_is_full(error):
                explained = f"no space left on the disk ({first_line(error)}); free some and run again"
        failure = f"{type(error).__name__}: {explained or error}"
        if isinstance(error, KeyboardInterrupt):
            failure = tracking.INTERRUPTED
        try:
            self.run.end(failure=failure)
        except Exception as untracked:  # for example because the disk is full; what failed first is what counts
            logger.warning("the run's failure could not be tracked: %s", first_line(untracked))
        logger.error("stage=%s status=failed", self.summary.stage)  # why is said once, by who catches the error
        if explained is not None:
            raise InputError(explained) from error

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs figures of a step to the tracked run, and shows them to who reads the metrics endpoint."""
        self.run.log_metrics(figures, step)
        if self._endpoint is not None:
            self._endpoint.show(step, figures)

    def restore(self, outputs: dict[str, Path], *, inputs: list[Path]) -> bool:
        """Takes the outputs from the cache if it holds them for these inputs, these parameters and this code.

        Only for stages that are pure. On a hit, ``results`` and ``series`` are restored as well.

        Args:
            outputs: Where each named output belongs.
            inputs: Files and folders whose content the outputs depend on.

        Returns:
            Whether everything is in place and the body can be left out.
        """
        if self._cache is None:
            return False
        self._cache_key = self._cache.key(self.summary.stage, self.summary.parameters, inputs)
        note = self._cache.restore(self._cache_key, outputs)
        if note is None:
            return False
        self.summary.results, self.summary.series, self.summary.cached = note["results"], note["series"], True
        logger.info("stage=%s cache=hit key=%s", self.summary.stage, self._cache_key[:12])
        return True

    def keep(self, outputs: dict[str, Path]) -> None:
        """Keeps the outputs for the next :meth:`restore` with the same key; call it when they are complete."""
        if self._cache is not None and self._cache_key is not None:
            self._cache.keep(self._cache_key, outputs, {"results": self.results, "series": self.series})


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB.

    Linux's VmHWM is preferred over getrusage, whose figure a child inherits from its parent.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024) if sys.platform == "darwin" else peak / 1024


def report_input_errors_in_one_line() -> None:
    """Makes an uncaught InputError end the process with its message alone, in place of a traceback."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, InputError):
            sys.stderr.write(f"error: {logs.of_rank()}{error}\n")
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
