"""Runs benchmarks one after the other, each in a process of its own: ``python -m bench cpu|gpu|gpus [name ...]``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.benchmark import GRACE_SECONDS, Options, add_options, read_options
from bench.machine import Machine, this_machine
from bench.report import RESULTS, plain_table
from bench.row import Row, read_rows
from modelcore.atomic import write_json, write_text
from modelcore.errors import InputError
from modelcore.interrupts import Interrupts

_running: list[subprocess.Popen[str]] = []  # the benchmark at work, if one is


def main(arguments: list[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status: 0, 1 for what failed or was wrong, 130 or 143 if interrupted."""
    interrupts = Interrupts(last_words=_end_at_once)
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this project beside its peers.")
    parser.add_argument("kind", choices=("cpu", "gpu", "gpus"), help="what to measure on")
    parser.add_argument("names", nargs="*", metavar="name", help="which benchmarks; default: all")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the rows, a .jsonl; default: {RESULTS.name}/MACHINE.jsonl"
    )
    add_options(parser)
    try:
        given = parser.parse_intermixed_args(arguments)  # names may follow options
        options = read_options(given)
        machine = this_machine("cpu" if options.small else given.kind)  # the motions take no GPU
        return run(f"bench.{given.kind}", given.names, options, machine, given.out)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"interrupted; {stop or 'nothing is written'}\n")
        return interrupts.status


def run(package: str, names: Sequence[str], options: Options, machine: Machine, out: Path | None) -> int:
    """Runs benchmarks and writes their rows after each; rows of what is not run stay.

    Args:
        package: Where they are: ``bench.cpu``, ``bench.gpu`` or ``bench.gpus``.
        names: Which of them; none: all.
        options: What each is asked for.
        machine: What this runs on; told in a JSON file beside the rows.
        out: The file of rows; None: the machine's under ``bench/results``, where nothing of a small run goes.

    Returns:
        0, or 1 if a benchmark failed; it then has no rows in the file.

    Raises:
        InputError: If a name is unknown, the file holds something else than rows, or nothing can be written there.
        KeyboardInterrupt: If it is interrupted; with what is written by then. The benchmark at work is ended.
    """
    about = importlib.import_module(package)
    chosen = _chosen(names, about.BENCHMARKS)
    if out is None and not options.small:
        out = RESULTS / f"{machine.name}.jsonl"
    if out is not None and options.folder is None:
        options = dataclasses.replace(options, folder=out.parent)
    before: list[Row] = []
    if out is not None:
        _check_out(out)
        before = read_rows(out)
    known = dict.fromkeys((*about.BENCHMARKS, *(row.benchmark for row in before)))
    rows = {name: [row for row in before if row.benchmark == name] for name in known}
    if missing := [name for name in about.PEERS if name not in options.peers]:
        sys.stderr.write(f"left out, because no path to them was given: {', '.join(missing)}\n")
    if idle := [name for name in options.peers if name not in about.PEERS]:
        sys.stderr.write(f"given, but nothing is measured beside it here: {', '.join(idle)}\n")
    if options.settings and (deaf := [name for name in chosen if name not in about.TRAINING]):
        sys.stderr.write(f"--set has no effect on what does no training: {', '.join(deaf)}\n")
    failed: list[str] = []
    for number, name in enumerate(chosen, 1):
        sys.stderr.write(f"{name} ({number} of {len(chosen)}) ...\n")
        started = time.monotonic()
        try:
            rows[name] = _run_one(package, name, options)
        except KeyboardInterrupt:
            done = "nothing is written" if out is None or number == 1 else f"what was done before {name} is in {out}"
            raise KeyboardInterrupt(done) from None
        if not rows[name]:
            failed.append(name)
        outcome = f"{len(rows[name])} rows" if rows[name] else "FAILED"
        sys.stderr.write(f"{name}: {outcome} in {time.monotonic() - started:.0f} s\n")
        if out is not None:
            write_text(out, "".join(row.to_json() + "\n" for each in rows.values() for row in each))
            write_json(out.with_suffix(".json"), machine.facts)
    sys.stdout.write(plain_table([row for name in chosen for row in rows[name]]) + "\n")
    if out is not None:
        sys.stdout.write(f"\nwritten to {out}\n")
    if failed:
        sys.stderr.write(f"error: failed, and without rows: {', '.join(failed)}\n")
    return 1 if failed else 0


def _run_one(package: str, name: str, options: Options) -> list[Row]:
    """The rows of a benchmark; none, and a line that says why, if it failed."""
    line = [sys.executable, "-m", f"{package}.{name}", *options.arguments()]
    environment = {"HF_HUB_OFFLINE": "1", **os.environ}
    child = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603
    _running[:] = [child]
    try:
        lines = child.communicate()[0].splitlines()
    except BaseException:
        child.terminate()  # it removes its temporary files, and ends what it has started
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
        child.kill()
        child.wait()
        raise
    finally:
        _running.clear()
    if child.returncode:
        return []
    try:
        rows = [Row.from_json(text) for text in lines]
        for row in rows:
            if row.benchmark != name:
                raise InputError(f"the row {row.name!r} does not begin with its benchmark's name, {name}")
        if not rows:
            raise InputError("it gave no rows")
    except InputError as error:
        sys.stderr.write(f"  {error}\n")
        return []
    return rows


def _end_at_once() -> None:
    for child in _running:
        child.kill()
    sys.stderr.write("interrupted\n")


def _check_out(out: Path) -> None:
    """Finds out before the work whether rows, and the machine's facts beside them, can be written."""
    if out.suffix != ".jsonl":
        raise InputError(
            f"--out {out} does not end in .jsonl; the rows go there, the machine's facts into a .json beside"
        )
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not path.is_file():
            raise InputError(f"--out {out} cannot be written: {path} is no file")
    folder = Path(os.path.realpath(out)).parent  # a link's target is what is replaced
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):  # as root, permissions tell nothing
            pass
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror} ({folder})") from None


def _chosen(names: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise InputError(f"benchmark {name!r} is not known; there are: {', '.join(known) or 'none'}")
    return tuple(name for name in known if name in names) or known


if __name__ == "__main__":
    sys.exit(main())
