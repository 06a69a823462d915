"""Exact checkpoints: everything the next step depends on, so that a resumed run ends bit for bit like an unbroken one.

A checkpoint is a folder ``step-00000500/``::

    model.safetensors      the parameters that are trained
    optimizer.safetensors  the optimizer's state
    average.safetensors    the average of the weights, in runs that keep one
    spikes.safetensors     the losses and gradient norms that the next ones are compared with, in runs that do so
    state.json             steps done, counters and curves, what the run is (identity), state of the random generators
    manifest.json          size and SHA-256 of the other files

It is written under another name, flushed to the disk and renamed, and when it is removed its manifest goes first. So a
killed process leaves whole checkpoints, and at most a folder without a manifest, which is none. A manifest that
does not fit its files means that the disk, or somebody, changed them. Samples need no state: they are a function of
the step (see :mod:`modelcore.data.loader`).

A run whose tensors lie in pieces on several ranks writes :mod:`modelcore.training.sharded_storage`'s files instead of
the tensors'; here such a checkpoint is read as a whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelcore import storage
from modelcore.atomic import atomic_directory, sync, write_json
from modelcore.errors import InputError
from modelcore.files import file_digest
from modelcore.gptx import GPT
from modelcore.gptx.vocab_padding import with_padding, without_padding
from modelcore.training.checkpoint_files import INDEX, STATE
from modelcore.training.checkpoint_list import checkpoint_name, latest_checkpoint, remove_older
from modelcore.training.parallel import Ranks

logger = logging.getLogger(__name__)

VERSION = 2


class Part(Protocol):
    """Something of a run that a checkpoint holds as tensors."""

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name; a part that has nothing gets no file."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what :meth:`state_tensors` gave, on whatever device it lies."""


def save_checkpoint(
    folder: Path,
    step: int,
    model: GPT,
    parts: Mapping[str, Part],
    *,
    identity: Mapping[str, Any],
    progress: Mapping[str, Any],
    random: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes the checkpoint of a run after ``step`` steps and removes the oldest ones beyond ``keep``.

    Args:
        folder: Where the run's checkpoints are.
        step: Steps done.
        model: The model.
        parts: What it holds beside the model's parameters, by the name of its file.
        identity: What must be the same for a run that resumes: plain JSON values, nested or not.
        progress: Counters and curves that the resumed run goes on with: plain JSON values.
        random: What :func:`~modelcore.training.random_state.random_state` gave.
        keep: Number of newest checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: If the disk is full; earlier checkpoints are then still there.
    """
    path = folder / checkpoint_name(step)
    # Each file is summed and flushed to the disk while the next one is written.
    with atomic_directory(path) as fresh, ThreadPoolExecutor() as pool:
        sums: dict[str, Future[str]] = {}
        flushed: list[Future[None]] = []

        def written(file: Path) -> None:
            sums[file.name] = pool.submit(file_digest, file)
            flushed.append(pool.submit(sync, file))

        for name, part in with_weights(model, parts).items():
            if tensors := part.state_tensors():
                save_file(_on_cpu(without_padding(model, tensors)), fresh / f"{name}.safetensors")
                written(fresh / f"{name}.safetensors")
        state = {"version": VERSION, "step": step, "identity": identity, "progress": progress, "random": random}
        write_json(fresh / STATE, state)
        written(fresh / STATE)
        manifest = {
            name: {"size": (fresh / name).stat().st_size, "sha256": sums[name].result()} for name in sorted(sums)
        }
        for each in flushed:
            each.result()
        write_json(fresh / storage.MANIFEST, manifest)
    logger.info("checkpoint=%s", path)
    remove_older(folder, path.name, keep)
    return path


def resume(
    folder: Path, model: GPT, parts: Mapping[str, Part], *, identity: Mapping[str, Any], ranks: Ranks
) -> dict[str, Any] | None:
    """Puts the newest complete checkpoint in place, on all ranks; only the first of them needs to have it.

    Args:
        folder: Where the run's checkpoints are.
        model: The model.
        parts: As in :func:`save_checkpoint`.
        identity: What the run that resumes is.
        ranks: The processes that train together.

    Returns:
        The content of its ``state.json``, or None if there is no checkpoint.

    Raises:
        InputError: As in :func:`~modelcore.training.checkpoint_list.latest_checkpoint` and :func:`load_checkpoint`.
    """
    state = None
    if ranks.first and (path := latest_checkpoint(folder)) is not None:
        state = load_checkpoint(path, model, parts, identity=identity)
        logger.info("resumes from %s", path)
    if ranks.size > 1 and (state := ranks.share_json(state)) is not None:
        for part in with_weights(model, parts).values():
            part.load_state_tensors(ranks.share_tensors(part.state_tensors()))
    return state


def load_checkpoint(
    path: Path, model: GPT, parts: Mapping[str, Part], *, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Puts what a checkpoint holds in place.

    The random generators are not touched yet: call :func:`~modelcore.training.random_state.restore_random_state` with
    the result right before the first step, when nothing is left to be built that could draw from them.

    Args:
        path: A folder that :func:`~modelcore.training.checkpoint_list.latest_checkpoint` gave.
        model: A model of the shape that ``identity`` describes.
        parts: As in :func:`save_checkpoint`.
        identity: What the run that resumes is; compared with what the checkpoint's run was.

    Returns:
        The content of ``state.json``.

    Raises:
        InputError: Naming the first setting that differs, if the checkpoint is of another run.
    """
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    check_identity(path, state, identity)
    for name, part in with_weights(model, parts).items():
        part.load_state_tensors(with_padding(model, part_tensors(path, name)))
    return state


def check_identity(path: Path | str, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Makes sure that a checkpoint is of the run that resumes.

    Args:
        path: The checkpoint.
        state: The content of its ``state.json``.
        identity: What the run that resumes is.

    Raises:
        InputError: Naming the first setting that differs, or if the checkpoint is of another version.
    """
    if state.get("version") != VERSION:
        raise InputError(f"checkpoint {path} has version {state.get('version')!r}; this program reads {VERSION}")
    ours, theirs = _flatten(identity), _flatten(state["identity"])
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"checkpoint {path} is of another run: {name} was {theirs.get(name)!r}, is now {ours.get(name)!r}; "
                "give the same settings to resume, or remove the checkpoint to start anew"
            )


class _Weights:
    """The part that is the trained parameters themselves."""

    def __init__(self, model: GPT) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def state_tensors(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])


def with_weights(model: GPT, parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts of a run, with the trained parameters as the first one."""
    return {"model": _Weights(model), **parts}


def part_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """A part's tensors; none if the checkpoint has nothing of it."""
    if (path / INDEX).is_file():
        from modelcore.training.sharded_storage import read_tensors

        return read_tensors({file.name: file for file in path.iterdir()}, name)
    file = path / f"{name}.safetensors"
    return load_file(file) if file.is_file() else {}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
