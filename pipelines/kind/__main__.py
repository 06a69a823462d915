"""``python -m pipelines.kind up [NAME] [key=value …]`` and ``down``."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from modelcore.errors import InputError
from modelcore.interrupts import Interrupts
from pipelines.kind import cluster, credentials, diagnosis, inputs, installation, outcome, requirements, submission
from pipelines.kind.forwarding import forward, free_port
from pipelines.kind.programs import CONTEXT, ProgramError
from pipelines.run_folder import check_name

RUN_FAILED = 3
REPORTS = Path("runs") / "kind"


class Progress:
    """How far it has come, for what to say when it is stopped.

    Attributes:
        name: The run's name.
        parameters: Its parameters, as given.
        begun: Whether there is, or will be, a cluster.
        submitted: Whether the run is in the cluster.
    """

    def __init__(self, name: str, parameters: Sequence[str]) -> None:
        self.name, self.parameters = name, list(parameters)
        self.begun = self.submitted = False

    def onward(self) -> str:
        """What to type to go on, or to end it."""
        words = f" ARGS={shlex.quote(shlex.join(self.parameters))}" if self.parameters else ""
        kept = "the run goes on in the cluster" if self.submitted else "the cluster stays as it is"
        return (
            f"{kept}; go on with: make local-pipeline NAME={self.name}{words}\n"
            "take the cluster away with: make local-pipeline-down"
        )


def up(progress: Progress) -> int:
    """Makes or finds the cluster, installs everything, runs the pipeline, prints its table.

    Returns:
        0, or RUN_FAILED if the pipeline's run did not succeed.

    Raises:
        InputError: If something is missing here.
        ProgramError: If something fails in the cluster.
    """
    check_name(progress.name)
    places = inputs.check(progress.parameters)
    requirements.check_programs()
    requirements.check_images()
    found = cluster.exists()
    if not found:
        requirements.check_memory()
    progress.begun = True
    if found:
        cluster.find()
    else:
        cluster.create()
    cluster.load(requirements.IMAGES)
    installation.install()
    store_port = free_port()  # the same each time: the client of the store is made once
    with _kfp() as address:
        if run_id := submission.under_way(address, progress.name):
            sys.stderr.write(f"run {progress.name} is under way; waiting for it ({run_id})\n")
        else:
            with _store(store_port):
                parameters = [*_with_checkpoints(progress), *inputs.upload(places, progress.name)]
            run_id = submission.submit(address, progress.name, parameters)
            sys.stderr.write(f"run {progress.name} is submitted ({run_id})\n")
    progress.submitted = True
    ended = submission.wait(_kfp, run_id)
    progress.submitted = False
    if ended.state != "SUCCEEDED":
        sys.stderr.write(f"error: the run {progress.name} ended as {ended.state}: {ended.failure}\n")
        return RUN_FAILED
    with _store(store_port):
        stages = outcome.summaries(run_id)
        page = REPORTS / f"{progress.name}.html"
        outcome.fetch_page(run_id, page)
    from modelcore.evaluation.report import render_table

    sys.stdout.write(render_table(stages, total_seconds=ended.seconds, commands=False) + "\n")
    sys.stdout.write(_where(page))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 for an error that was explained; 3 if the run failed; 130 or 143 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.kind", description="The pipeline on a kind cluster here."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="make or find the cluster, install, run the pipeline")
    starting.add_argument("--name", help="name of the run; default: the time")
    starting.add_argument("parameters", nargs="*", metavar="key=value", help="parameters of the pipeline")
    commands.add_parser("down", help="take the cluster away with everything in it")
    options = parser.parse_args(arguments)
    progress = Progress("", [])

    def last_words() -> None:
        sys.stderr.write("interrupted" + (f". {progress.onward()}\n" if progress.begun else "\n"))

    interrupts = Interrupts(last_words)
    try:
        if options.command == "down":
            cluster.delete()
            return 0
        name = options.name or datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        progress = Progress(name, options.parameters)
        status = up(progress)
        if status:
            diagnosis.report()
            sys.stderr.write(f"\nthe cluster stays; when mended, {_again(progress)}\n")
        return status
    except KeyboardInterrupt:
        last_words()
        return interrupts.status
    except InputError as error:
        if isinstance(error, ProgramError) and progress.begun:
            diagnosis.report()
            sys.stderr.write(f"\nerror: {error}\nwhat is there stays; {_again(progress)}\n")
        else:
            sys.stderr.write(f"error: {error}\n")
        return 1


def _kfp() -> AbstractContextManager[str]:
    return forward("kubeflow", "ml-pipeline", 8888)


@contextlib.contextmanager
def _store(port: int) -> Iterator[None]:
    """Makes KFP's object store the one that s3:// means here, while the block runs."""
    with forward("kubeflow", "seaweedfs", 9000, port) as address:
        outcome.open_store(address, credentials.storage_key())
        yield


def _with_checkpoints(progress: Progress) -> list[str]:
    """The run's parameters; checkpoints go to the object store, by the run's name, unless told otherwise."""
    place = f"checkpoint_uri={inputs.BUCKET}/checkpoints/{progress.name}"
    return [place, *progress.parameters]  # of a parameter given twice the last counts


def _again(progress: Progress) -> str:
    return progress.onward().partition("; ")[2]


def _where(page: Path) -> str:
    """Where to look further."""
    forwarding = f"kubectl --context {CONTEXT} -n"
    secret = f"{forwarding} mlflow get secret mlflow -o jsonpath='{{.data.MLFLOW_AUTH_ADMIN_PASSWORD}}' | base64 -d"
    return f"""
{page}  the report, as one page

look further, each in a terminal of its own
  {forwarding} mlflow port-forward service/mlflow 5000          # http://localhost:5000, user admin
  {secret}  # its password
  {forwarding} kubeflow port-forward service/ml-pipeline-ui 8080:80  # http://localhost:8080
  make local-pipeline-down                # take the cluster away
"""


if __name__ == "__main__":
    sys.exit(main())
