"""What every benchmark is: a module with a function that gives rows, run in a process of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers import find_peers
from bench.row import Row
from modelcore.errors import InputError


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked for.

    Attributes:
        small: Whether only to go through the motions, in seconds; the figures then mean nothing.
        peers: Folders of the peers that are no packages, by name (:data:`bench.peers.PEERS`).
    """

    small: bool = False
    peers: Mapping[str, Path] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """The command line that gives these options."""
        peers = [word for name, path in self.peers.items() for word in ("--peer", f"{name}={path}")]
        return ["--small"] * self.small + peers


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that :func:`read_options` reads."""
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER", help="where a peer's source is")
    parser.add_argument("--small", action="store_true", help="a quick look whether it works; the figures mean nothing")


def read_options(arguments: argparse.Namespace) -> Options:
    """What was given on the command line.

    Raises:
        InputError: If a peer's folder does not hold what is needed.
    """
    return Options(arguments.small, find_peers(arguments.peer))


def main(rows: Callable[[Options], Iterable[Row]]) -> None:
    """Runs a benchmark: one row a line on stdout, everything else on stderr; exits with 1 and one line on bad input."""
    parser = argparse.ArgumentParser(description="One benchmark; prints one JSON line a row.")
    add_options(parser)
    try:
        for row in rows(read_options(parser.parse_args())):
            sys.stdout.write(row.to_json() + "\n")
            sys.stdout.flush()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
