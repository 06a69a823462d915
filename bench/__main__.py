"""Runs the benchmarks one after the other, each in a process of its own: ``python -m bench cpu|gpu [name ...]``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.benchmark import Options, add_options, read_options
from bench.machine import Machine, this_machine
from bench.report import RESULTS, plain_table
from bench.row import Row, read_rows
from modelcore.atomic import write_json, write_text
from modelcore.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status: 0, 1 if a benchmark failed or an argument is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this project beside its peers.")
    parser.add_argument("kind", choices=("cpu", "gpu"), help="what to measure on")
    parser.add_argument("names", nargs="*", metavar="name", help="which benchmarks; default: all")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the rows; default: {RESULTS.name}/MACHINE.jsonl")
    add_options(parser)
    given = parser.parse_args(arguments)
    try:
        return run(f"bench.{given.kind}", given.names, read_options(given), this_machine(given.kind), given.out)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the benchmarks that were done are written\n")
        return 130


def run(package: str, names: Sequence[str], options: Options, machine: Machine, out: Path | None) -> int:
    """Runs benchmarks and writes their rows after each; rows of other benchmarks in the file stay.

    Args:
        package: Where they are: ``bench.cpu`` or ``bench.gpu``.
        names: Which of them; none: all.
        options: What each is asked for.
        machine: What this runs on; told in a JSON file beside the rows.
        out: The file of rows; None: the machine's under ``bench/results``, where nothing of a small run goes.

    Returns:
        0, or 1 if a benchmark failed; it then has no rows in the file.

    Raises:
        InputError: If a name is unknown, or the file holds something else than rows.
    """
    about = importlib.import_module(package)
    chosen = _chosen(names, about.BENCHMARKS)
    if out is None and not options.small:
        out = RESULTS / f"{machine.name}.jsonl"
    if out is not None and options.folder is None:
        options = dataclasses.replace(options, folder=out.parent)
    before = read_rows(out) if out is not None else []
    rows = {name: [row for row in before if row.benchmark == name] for name in about.BENCHMARKS}
    if missing := [name for name in about.PEERS if name not in options.peers]:
        sys.stderr.write(f"left out, because no path to them was given: {', '.join(missing)}\n")
    if idle := [name for name in options.peers if name not in about.PEERS]:
        sys.stderr.write(f"given, but nothing is measured beside it here: {', '.join(idle)}\n")
    failed: list[str] = []
    for number, name in enumerate(chosen, 1):
        sys.stderr.write(f"{name} ({number} of {len(chosen)}) ...\n")
        started = time.monotonic()
        rows[name] = _run_one(package, name, options)
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
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False, env=environment)  # noqa: S603
    if done.returncode:
        return []
    try:
        rows = [Row.from_json(text) for text in done.stdout.splitlines()]
        for row in rows:
            if row.benchmark != name:
                raise InputError(f"the row {row.name!r} does not begin with its benchmark's name, {name}")
        if not rows:
            raise InputError("it gave no rows")
    except InputError as error:
        sys.stderr.write(f"  {error}\n")
        return []
    return rows


def _chosen(names: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise InputError(f"benchmark {name!r} is not known; there are: {', '.join(known) or 'none'}")
    return tuple(name for name in known if name in names) or known


if __name__ == "__main__":
    sys.exit(main())
