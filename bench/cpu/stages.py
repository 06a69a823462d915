"""How long each stage takes until its own work begins: a process as the pipeline starts it, KFP's executor included."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from bench.benchmark import Options, main
from bench.measure import alternate
from bench.row import Row
from pipelines.run_folder import STAGES

# What the executor does before a component's body, the body's import, and the stage's beginning.
PROGRAM = """
import kfp.dsl.executor_main
from modelcore.stages.{stage} import {stage}
from modelcore.stages.stage import Stage
with Stage("{stage}", {{}}):
    pass
"""


def rows(options: Options) -> Iterator[Row]:
    """Seconds from the process's start, untracked; libraries that a stage imports where it uses them come later."""
    stages = STAGES[:1] if options.small else STAGES
    samples = {stage: _process(PROGRAM.format(stage=stage)) for stage in stages}
    for stage, seconds in alternate(samples, runs=1 if options.small else 3, warmup=0 if options.small else 1).items():
        yield Row(f"stages {stage}", "start-up", seconds.median, "s")


def _process(program: str) -> Callable[[], float]:
    """What runs a program in a fresh process, and gives the seconds it took in all."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "KFP_"))}

    def run() -> float:
        start = time.perf_counter()
        line = [sys.executable, "-W", "ignore", "-c", program]
        subprocess.run(line, check=True, env=environment, capture_output=True)  # noqa: S603
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main(rows)
