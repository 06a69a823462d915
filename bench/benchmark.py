"""What every benchmark is: a module with a function that gives rows, run in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import find_peers
from bench.row import Row
from modelcore import launch
from modelcore.errors import InputError
from modelcore.interrupts import Interrupts

GRACE_SECONDS = 5.0  # for a process that is asked to end


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked for.

    Attributes:
        small: Whether only to go through the motions, in seconds; the figures then mean nothing.
        peers: Folders of the peers that are no packages, by name (:data:`bench.peers.PEERS`).
        settings: Training settings to measure ours with where they differ from a benchmark's own, by name.
        folder: Where a benchmark writes what is more than rows; None: nowhere.
    """

    small: bool = False
    peers: Mapping[str, Path] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def arguments(self) -> list[str]:
        """The command line that gives these options."""
        peers = [word for name, path in self.peers.items() for word in ("--peer", f"{name}={path}")]
        settings = [word for name, value in self.settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
        folder = [] if self.folder is None else ["--folder", str(self.folder)]
        return ["--small"] * self.small + peers + settings + folder


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that :func:`read_options` reads."""
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER", help="where a peer's source is")
    parser.add_argument("--small", action="store_true", help="a quick look whether it works; the figures mean nothing")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a training setting to measure ours with"
    )
    parser.add_argument("--folder", type=Path, help="where results go that are more than rows")


def read_options(arguments: argparse.Namespace) -> Options:
    """What was given on the command line.

    Raises:
        InputError: If a peer's folder does not hold what is needed, or a setting is unknown or not of the form
            NAME=VALUE.
    """
    return Options(arguments.small, find_peers(arguments.peer), _settings(arguments.set), arguments.folder)


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """The values that ``name=value`` texts name: as JSON has them, or else the text."""
    settings: dict[str, Any] = {}
    known = _names_of_settings() if given else []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"setting {text!r} has no value; give NAME=VALUE, such as micro_batch_size=2")
        if name not in known:
            raise InputError(f"setting {name!r} is not known; there are: {', '.join(known)}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _names_of_settings() -> list[str]:
    from modelcore.training import TrainingSettings  # with torch, which takes a second

    return sorted(field.name for field in dataclasses.fields(TrainingSettings))


def main(
    rows: Callable[[Options], Iterable[Row]], parts: Mapping[str, Callable[[Options], dict[str, Any]]] | None = None
) -> None:
    """Runs a benchmark: one row a line on stdout, everything else on stderr.

    Exits with 1 and one line on bad input, with 130 or 143 if interrupted.

    Args:
        rows: The benchmark.
        parts: What of it is done in a process of its own, by name (:func:`in_fresh_process`).
    """
    parser = argparse.ArgumentParser(description="One benchmark; prints one JSON line a row.")
    add_options(parser)
    parser.add_argument("--part", choices=parts or (), help="do one part, and print what it found as a JSON object")
    arguments = parser.parse_args()
    interrupts = Interrupts(last_words=lambda: None)
    try:
        options = read_options(arguments)
        if arguments.part:
            found = (parts or {})[arguments.part](options)
            lines = iter([json.dumps(found)] if launch.rank() == 0 else [])
        else:
            lines = (row.to_json() for row in rows(options))
        for line in lines:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(interrupts.status)


def in_fresh_process(module: str, part: str, options: Options, processes: int = 1) -> dict[str, Any]:
    """What a part of the benchmark ``module`` finds in a process of its own, or in several that torchrun starts.

    Raises:
        RuntimeError: If it fails; with the end of what it wrote to stderr.
    """
    run = ["-m", module, "--part", part, *options.arguments()]
    if processes > 1:
        run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *run]
    child = subprocess.Popen([sys.executable, *run], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
    try:
        out, err = child.communicate()
    except BaseException:
        child.terminate()  # torchrun ends its processes, where a kill would leave them
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
        child.kill()
        child.wait()
        raise
    if child.returncode:
        raise RuntimeError(f"{' '.join(run)} failed ({child.returncode}): {err.strip()[-2000:]}")
    told = [line for line in out.splitlines() if line.startswith("{")]  # other processes may have more to say
    found: dict[str, Any] = json.loads(told[-1])
    return found
