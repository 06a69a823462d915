"""Starts a run of a compiled pipeline on a cluster: ``python -m pipelines.submit --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from modelcore.errors import InputError
from pipelines.cluster_parameters import FOLDER, read
from pipelines.endpoint import connect

EXPERIMENT = "aic-ai-poc-gpt"


def submit(address: str, *, pipeline: str, name: str, words: Iterable[str], experiment: str = EXPERIMENT) -> str:
    """Starts a run, as ``kfp run create`` does, once its parameters are known to be right.

    Args:
        address: KFP's API.
        pipeline: Name of a compiled pipeline.
        name: The run's name.
        words: The pipeline's parameters, ``key=value`` each.
        experiment: The experiment that it belongs to; made where it is new.

    Returns:
        KFP's id of the run.

    Raises:
        InputError: If a parameter is none, or KFP cannot be reached or refuses the run.
    """
    given = read(pipeline, words)
    with connect(address, "the run") as client:
        made = client.run_pipeline(
            experiment_id=client.create_experiment(experiment).experiment_id,
            job_name=name,
            params=given,
            pipeline_package_path=str(FOLDER / f"{pipeline}.yaml"),
        )
    return str(made.run_id)


def main(arguments: Iterable[str] | None = None) -> int:
    """Starts the run; returns the exit status."""
    pipelines = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    parser = argparse.ArgumentParser(prog="python -m pipelines.submit", description="Start a run on a cluster.")
    parser.add_argument("endpoint", help="address of KFP's API, such as http://localhost:8888")
    parser.add_argument(
        "parameters", nargs="*", metavar="key=value", help="the pipeline's; corpus and instructions must be given"
    )
    parser.add_argument("--pipeline", choices=pipelines, default="gpt-pipeline", help="default: %(default)s")
    parser.add_argument("--name", default="gpt", help="the run's name; default: %(default)s")
    parser.add_argument("--experiment", default=EXPERIMENT, help="default: %(default)s")
    options = parser.parse_intermixed_args(list(arguments) if arguments is not None else None)
    try:
        run_id = submit(
            options.endpoint,
            pipeline=options.pipeline,
            name=options.name,
            words=options.parameters,
            experiment=options.experiment,
        )
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{options.name} has begun: {run_id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
