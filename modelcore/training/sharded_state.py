"""Sharded checkpoints of a run whose tensors lie in pieces on several ranks: saved behind the steps, resumed by any.

A step waits for the copy of its rank's pieces to CPU memory alone. They are written, summed and uploaded by a thread
while the next steps run, one checkpoint at a time. What lies there may be resumed by another number of ranks, under
another strategy, or by one process; and a run under FSDP may resume what one process wrote. The format is that of
:mod:`modelcore.training.sharded_storage`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from modelcore import launch, storage
from modelcore.atomic import remove_leftovers
from modelcore.errors import InputError, first_line
from modelcore.gptx import GPT
from modelcore.training.checkpoint_files import STATE, CheckpointFiles, DamagedError, fetched
from modelcore.training.checkpoint_list import (
    CHECKPOINT_NAME,
    checkpoint_name,
    checkpoint_names,
    refuse_damaged,
    remove_older,
    warn_of_damage,
)
from modelcore.training.pieces import LoadPlanner, Pieces, SavePlanner, owner_of, pieces_of_part
from modelcore.training.sharded_storage import Reader, Writer, tensors_of
from modelcore.training.state import VERSION, Part, check_identity, with_weights

logger = logging.getLogger(__name__)


class ShardedCheckpoints:
    """Writes a run's checkpoints behind its steps; as a context manager, whose end waits for what is under way.

    Every process of the default process group makes one, and calls its methods at the same steps.

    Args:
        place: Folder that holds the checkpoints, the same one for all processes, or an ``s3://`` address.
        scratch: Local folder, for what is on its way to S3 or comes from there.
        identity: What must be the same for a run that resumes: plain JSON values, nested or not.
        keep: Number of newest checkpoints to keep.
    """

    def __init__(self, place: str, scratch: Path, identity: Mapping[str, Any], keep: int) -> None:
        self._place, self._scratch, self._identity, self._keep = place.rstrip("/"), scratch, identity, keep
        # A group of its own: what the thread says must not come between the words of the steps.
        self._group = dist.new_group(backend="gloo")
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copies: dict[tuple[str, torch.Size], Tensor] = {}
        self._under_way: Future[str | None] | None = None
        self._name = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def resume(self, model: GPT, parts: Mapping[str, Part]) -> dict[str, Any] | None:
        """Puts the newest complete checkpoint in place, sharded or not, whatever number of processes wrote it.

        Each process reads, and holds against the manifest, only the files that its own pieces are in.

        Args:
            model: The model, already sharded.
            parts: As in :func:`~modelcore.training.state.save_checkpoint`.

        Returns:
            The content of its ``state.json``, or None if there is no checkpoint.

        Raises:
            InputError: If the checkpoint is of another run, or all there are are damaged.
        """
        place, scratch = self._place, self._scratch
        if launch.local_rank() == 0:
            remove_leftovers(scratch, CHECKPOINT_NAME)
        if self._rank == 0 and not storage.is_remote(place):
            remove_leftovers(Path(place), CHECKPOINT_NAME)
        dist.barrier(self._group)
        faults: dict[str, str] = {}
        for name in self._first_says(checkpoint_names(place) if self._rank == 0 else []):
            with fetched(scratch, name) as folder:
                loading, fault = None, ""
                try:
                    loading = _Loading(f"{place}/{name}", folder, model, parts, self._identity)
                except DamagedError as error:
                    fault = str(error)
                faults[name] = next(filter(None, self._all_say(fault)), "")
                if loading is not None and not faults[name]:
                    loading.finish()
                    if self._rank == 0:
                        logger.info("resumes from %s/%s", place, name)
                    return loading.state
            if self._rank == 0:
                warn_of_damage(place, name, faults[name])
        refuse_damaged(place, faults)
        return None

    def _all_say(self, text: str) -> list[str]:
        """What each process says, in one line of at most 400 bytes."""
        said = torch.frombuffer(bytearray(text.encode()[:400].ljust(400)), dtype=torch.uint8)
        all_said = [torch.empty_like(said) for _ in range(self._size)]
        dist.all_gather(all_said, said, group=self._group)
        return [bytes(each.tolist()).decode(errors="replace").rstrip() for each in all_said]

    def _first_says(self, names: list[str]) -> list[str]:
        """Names of checkpoints, as the first process gives them."""
        length = torch.tensor(len(names))
        dist.broadcast(length, 0, group=self._group)
        steps = torch.zeros(int(length), dtype=torch.int64)
        for number, name in enumerate(names):
            steps[number] = int(name.removeprefix("step-"))
        dist.broadcast(steps, 0, group=self._group)
        return [checkpoint_name(step) for step in steps.tolist()]

    def save(
        self,
        step: int,
        model: GPT,
        parts: Mapping[str, Part],
        *,
        progress: Mapping[str, Any],
        random: Mapping[str, Any],
    ) -> None:
        """Copies the state to CPU memory and returns; the rest is done behind the next steps.

        One that is still being written is waited for. If one cannot be written, a line says so and training goes on:
        the next one makes up for it. The arguments are those of :func:`~modelcore.training.state.save_checkpoint`.
        """
        self._wait()
        copies = {
            f"{part_name}/{name}": self._copy(f"{part_name}/{name}", pieces)
            for part_name, part in with_weights(model, parts).items()
            for name, pieces in pieces_of_part(model, part.state_tensors()).items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        # As JSON right now: the curves in it grow on.
        state = {"version": VERSION, "step": step, "identity": self._identity, "progress": progress, "random": random}
        state = json.loads(json.dumps(state))
        self._name = checkpoint_name(step)
        self._under_way = self._pool.submit(self._write, self._name, copies, state)

    def finish(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            InputError: If it could not be.
        """
        if (fault := self._wait()) is not None:
            raise InputError(
                f"training is complete, but its last checkpoint {self._name} could not be written: {fault}; "
                "start again with the same settings to go on from the one before"
            )

    def _wait(self) -> str | None:
        return self._under_way.result() if self._under_way is not None else None

    def _copy(self, name: str, pieces: Pieces) -> Pieces:
        """The pieces in CPU memory, which the next checkpoint uses again."""
        boxes = {}
        for offset, box in pieces.boxes.items():
            there = self._copies.get((name, offset))
            if there is None or there.shape != box.shape:
                there = torch.empty(box.shape, dtype=box.dtype, pin_memory=box.is_cuda)
                self._copies[name, offset] = there
            boxes[offset] = there.copy_(box, non_blocking=True)
        return Pieces(pieces.shape, pieces.dtype, boxes)

    def _write(self, name: str, copies: dict[str, Pieces], state: Mapping[str, Any]) -> str | None:
        """In the thread: writes a checkpoint; what went wrong, or None."""
        address = f"{self._place}/{name}"
        writer = Writer(address, self._scratch, self._rank, self._size, state)
        try:
            save(copies, storage_writer=writer, planner=SavePlanner(), process_group=self._group)
        except (Exception, CheckpointException) as error:
            fault = _root(error)
            if self._rank == 0:
                logger.warning("checkpoint %s could not be written: %s; training goes on", address, fault)
                writer.discard()
            return fault
        if self._rank == 0:
            logger.info("checkpoint=%s", address)
            try:
                remove_older(self._place, name, self._keep)
            except Exception as error:  # the new one is none the worse for it
                logger.warning("checkpoints before %s could not be removed: %s", address, _root(error))
        return None


class _Loading:
    """What a rank is to read of a checkpoint; all files of it are there, and whole.

    Raises:
        DamagedError: If they are not.
        InputError: If the checkpoint is of another run.
    """

    def __init__(
        self, address: str, folder: Path, model: GPT, parts: Mapping[str, Part], identity: Mapping[str, Any]
    ) -> None:
        files = CheckpointFiles(address, folder)
        self.state: dict[str, Any] = json.loads(files[STATE].read_text(encoding="utf-8"))
        check_identity(address, self.state, identity)
        self._reader = Reader(files)
        metadata = self._reader.read_metadata()
        self._parts = with_weights(model, parts)
        self._tensors = {name: _destinations(model, name, part, metadata) for name, part in self._parts.items()}
        self._planner = LoadPlanner()
        self._planner.set_up_planner(
            {
                f"{part}/{name}": pieces
                for part, tensors in self._tensors.items()
                for name, pieces in pieces_of_part(model, tensors).items()
            },
            metadata,
        )
        self._plan = self._planner.create_local_plan()
        files.check(self._reader.files_of(self._plan))

    @torch.no_grad()
    def finish(self) -> None:
        """Reads the pieces and puts them in place."""
        self._reader.read_data(self._plan, self._planner)
        for name, part in self._parts.items():
            part.load_state_tensors(self._tensors[name])


def _destinations(model: GPT, part_name: str, part: Part, metadata: Metadata) -> dict[str, Tensor]:
    """For each saved tensor of a part one to be filled: the part's own, or one that lies in pieces as its parameter."""
    own, parameters = part.state_tensors(), dict(model.named_parameters())
    tensors = {}
    for full, saved in tensors_of(metadata).items():
        owner, _, name = full.partition("/")
        if owner != part_name:
            continue
        if name not in own:
            like = parameters.get(owner_of(parameters, name))
            fits = like is not None and pieces_of_part(model, {name: like})[name].shape == saved.size
            own[name] = torch.zeros_like(like.detach()) if like is not None and fits else torch.zeros(saved.size)
        tensors[name] = own[name].detach()
    return tensors


def _root(error: BaseException) -> str:
    """The first line of what really went wrong, on whichever rank."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = min(error.failures.items(), key=lambda each: each[0])
        return f"{first_line(cause)} (rank {rank})"
    return first_line(error)
