"""Where a run's checkpoints go, and in which of two formats: whole, by the first process, or sharded, by all.

A run whose tensors every process holds whole writes whole ones (:mod:`modelcore.training.state`); one whose tensors lie
in pieces on several writes sharded ones (:mod:`modelcore.training.sharded_state`). Each resumes from both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from modelcore.gptx import GPT
from modelcore.training.parallel import Ranks
from modelcore.training.sharding import Sharding
from modelcore.training.state import Part, resume, save_checkpoint


@dataclass(frozen=True)
class CheckpointPlace:
    """Where a run's checkpoints go.

    Attributes:
        folder: Local folder that holds them.
        identity: What decides the run's result, as plain JSON values: a run resumes only what has the same.
        saved: Called with the folder of each new checkpoint that is not sharded, for example to copy it elsewhere.
        uri: Where sharded ones go, if not to ``folder``: an ``s3://`` address, to which each process sends its own
            files. "": to ``folder``, which all processes must then share.
    """

    folder: Path
    identity: Mapping[str, Any]
    saved: Callable[[Path], None] = lambda path: None
    uri: str = ""


class Checkpoints(Protocol):
    """A run's checkpoints, as a context manager around its steps; every process calls the same methods."""

    def __enter__(self) -> Self:
        """Begins."""

    def __exit__(self, *error: object) -> None:
        """Waits for what is still being written."""

    def resume(self, model: GPT, parts: Mapping[str, Part]) -> dict[str, Any] | None:
        """Puts the newest complete checkpoint in place; the content of its ``state.json``, or None if there is none."""

    def save(
        self,
        step: int,
        model: GPT,
        parts: Mapping[str, Part],
        *,
        progress: Mapping[str, Any],
        random: Mapping[str, Any],
    ) -> None:
        """Saves the state of a run after ``step`` steps; see :func:`~modelcore.training.state.save_checkpoint`."""

    def finish(self) -> None:
        """Makes sure, after the last step, that the last checkpoint is written."""


def open_checkpoints(place: CheckpointPlace, sharding: Sharding, keep: int) -> Checkpoints:
    """The checkpoints of a run, in the format that fits how its model lies over the processes.

    Args:
        place: Where they go.
        sharding: The model's place on the processes.
        keep: Number of newest checkpoints to keep.
    """
    if sharding.whole:
        return WholeCheckpoints(place, keep, sharding.ranks)
    from modelcore.training.sharded_state import ShardedCheckpoints

    return ShardedCheckpoints(place.uri or str(place.folder), place.folder, place.identity, keep)


class WholeCheckpoints:
    """Checkpoints that the first process writes, while all others wait.

    Args:
        place: Where they go.
        keep: Number of newest checkpoints to keep.
        ranks: The processes that train together.
    """

    def __init__(self, place: CheckpointPlace, keep: int, ranks: Ranks) -> None:
        self._place, self._keep, self._ranks = place, keep, ranks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def resume(self, model: GPT, parts: Mapping[str, Part]) -> dict[str, Any] | None:
        """As :func:`~modelcore.training.state.resume`."""
        return resume(self._place.folder, model, parts, identity=self._place.identity, ranks=self._ranks)

    def save(
        self,
        step: int,
        model: GPT,
        parts: Mapping[str, Part],
        *,
        progress: Mapping[str, Any],
        random: Mapping[str, Any],
    ) -> None:
        """As :func:`~modelcore.training.state.save_checkpoint`, on the first process."""
        if self._ranks.first:
            path = save_checkpoint(
                self._place.folder,
                step,
                model,
                parts,
                identity=self._place.identity,
                progress=progress,
                random=random,
                keep=self._keep,
            )
            self._place.saved(path)

    def finish(self) -> None:
        """Does nothing: each was written before :meth:`save` returned."""
