"""Schedules the check for drift, and the training after it, on a cluster: ``python -m pipelines.recurring --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from modelcore.errors import InputError
from pipelines.cluster_parameters import FOLDER, read
from pipelines.endpoint import connect

EXPERIMENT = "aic-ai-poc-gpt"
DEFAULT_CRON = "0 0 3 * * *"
PROFILES = {"free-tier": "gpt-retrain", "enterprise": "gpt-retrain-enterprise"}
_CRON_FIELDS = 6  # seconds first: https://pkg.go.dev/github.com/robfig/cron


def schedule(
    address: str, *, name: str, cron: str, words: Iterable[str], profile: str, experiment: str = EXPERIMENT
) -> str:
    """Makes the recurring run of that name, in place of an earlier one of the experiment.

    Runs do not overlap, and those that were missed while the cluster was down are not made up for.

    Args:
        address: KFP's API.
        name: The recurring run's name.
        cron: When it runs: second, minute, hour, day of month, month, day of week; UTC by default.
        words: The pipeline's parameters, ``key=value`` each.
        profile: A key of PROFILES.
        experiment: The experiment that runs belong to; made where it is new.

    Returns:
        KFP's id of the recurring run.

    Raises:
        InputError: If a parameter or the schedule is none, or KFP cannot be reached or refuses it.
    """
    given = read(PROFILES[profile], words)
    if given.get("checkpoint_uri"):
        raise InputError(
            f"checkpoint_uri is {given['checkpoint_uri']!r}; leave it out: all runs of a schedule would share it, "
            "and training refuses another run's checkpoints"
        )
    if len(cron.split()) != _CRON_FIELDS:
        raise InputError(f"cron is {cron!r}; give six fields, seconds first, such as {DEFAULT_CRON!r} for each night")
    with connect(address, "the schedule") as client:
        experiment_id = client.create_experiment(experiment).experiment_id
        earlier = _of_name(client, experiment_id, name)
        made = client.create_recurring_run(
            experiment_id=experiment_id,
            job_name=name,
            description=f"Checks {given['corpus']} for drift, and trains if there is any.",
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params=given,
            pipeline_package_path=str(FOLDER / f"{PROFILES[profile]}.yaml"),
        )
    if earlier:  # only now: a refusal leaves the schedule that was there
        with connect(address, "the end of the earlier schedule, so there may be two now; run this again") as client:
            for recurring_id in earlier:
                client.delete_recurring_run(recurring_id)
    return str(made.recurring_run_id)


def _of_name(client: Any, experiment_id: str, name: str) -> list[str]:
    """The ids of the recurring runs that have this name."""
    found, token = [], ""
    while True:
        page = client.list_recurring_runs(page_token=token, page_size=100, experiment_id=experiment_id)
        found += [one.recurring_run_id for one in page.recurring_runs or [] if one.display_name == name]
        token = page.next_page_token or ""
        if not token:
            return found


def main(arguments: Iterable[str] | None = None) -> int:
    """Makes the schedule; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.recurring", description="Schedule the check for drift, and the training after it."
    )
    parser.add_argument("endpoint", help="address of KFP's API, such as http://localhost:8888")
    parser.add_argument(
        "parameters", nargs="*", metavar="key=value", help="the pipeline's; corpus and instructions must be given"
    )
    parser.add_argument(
        "--name",
        default="gpt-retrain",
        help="name; one of the experiment that has it is replaced; default: %(default)s",
    )
    parser.add_argument(
        "--cron",
        default=DEFAULT_CRON,
        help="when: six fields, seconds first; default: %(default)r, each night",
    )
    parser.add_argument("--profile", choices=PROFILES, default="free-tier", help="default: %(default)s")
    parser.add_argument("--experiment", default=EXPERIMENT, help="default: %(default)s")
    options = parser.parse_intermixed_args(list(arguments) if arguments is not None else None)
    try:
        recurring_id = schedule(
            options.endpoint,
            name=options.name,
            cron=options.cron,
            words=options.parameters,
            profile=options.profile,
            experiment=options.experiment,
        )
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{options.name} runs at {options.cron!r}: {recurring_id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
