"""A contest: one piece of work, done by us and by each peer, on the same card in the same run.

Every contender runs in a process of its own, one after the other: none finds the memory, the kernels chosen or the
global settings of the one before, and each has the card to itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bench.benchmark import Options, in_fresh_process
from bench.measure import note
from bench.row import Row

UNITS = {
    "throughput": "tok/s",
    "MFU": "fraction",
    "peak memory": "GiB",
    "share of the bandwidth roof": "fraction",
    "first token": "ms",
}
"""What a contender may measure, and the unit of each figure."""

OURS = "ours"

Measure = Callable[[Options], dict[str, float]]
"""Does the work and gives figures by the names in :data:`UNITS`."""


@dataclass(frozen=True)
class Peer:
    """Who else does the work.

    Attributes:
        measure: How it does it.
        folder: Its name in :data:`bench.peers.PEERS`, if its source must be given.
        package: A package without which it cannot run.
    """

    measure: Measure
    folder: str = ""
    package: str = ""

    def missing(self, options: Options) -> str:
        """What it needs and is not there; empty if nothing."""
        if self.folder and self.folder not in options.peers:
            return f"no --peer {self.folder}=FOLDER is given"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"the package {self.package} is not installed"
        return ""


@dataclass(frozen=True)
class Contest:
    """One piece of work and who does it.

    Attributes:
        module: The benchmark's module, which holds this contest as ``CONTEST``.
        work: What is worked on, in a few words.
        ours: How we do it.
        peers: How others do it, by their names.
    """

    module: str
    work: str
    ours: Measure
    peers: Mapping[str, Peer] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its rows are called."""
        return f"{self.module.rpartition('.')[2]} {self.work}"

    @property
    def parts(self) -> dict[str, Measure]:
        """Everyone who does the work, for :func:`bench.benchmark.main`."""
        return {OURS: self.ours} | {name: peer.measure for name, peer in self.peers.items()}

    def rows(self, options: Options) -> Iterator[Row]:
        """Our figures beside each peer's; alone where no peer could run.

        A peer that is missing or fails is left out, and stderr tells why.

        Raises:
            RuntimeError: If our own part fails.
        """
        ours = self._figures(OURS, options)
        beside_others = False
        for name, peer in self.peers.items():
            if reason := peer.missing(options):
                note(f"{name} is left out: {reason}")
                continue
            try:
                theirs = self._figures(name, options)
            except RuntimeError as error:
                note(f"{name} FAILED and is left out: {error}")
                continue
            beside_others = True
            for metric in UNITS:
                if metric in ours and metric in theirs:
                    yield Row(self.name, metric, ours[metric], UNITS[metric], name, theirs[metric])
        if not beside_others:
            for metric, value in ours.items():
                yield Row(self.name, metric, value, UNITS[metric])

    def _figures(self, contender: str, options: Options) -> dict[str, float]:
        figures: dict[str, float] = in_fresh_process(self.module, contender, options)
        told = ", ".join(f"{metric} {value:.4g} {UNITS[metric]}" for metric, value in figures.items())
        note(f"{contender}: {told}")
        return figures
