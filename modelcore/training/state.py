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

import base64
import contextlib
import fcntl
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelcore import storage
from modelcore.atomic import atomic_directory, remove_leftovers, sync, write_json
from modelcore.errors import InputError
from modelcore.files import file_digest, file_digests
from modelcore.gptx import GPT
from modelcore.gptx.vocab_padding import with_padding, without_padding
from modelcore.training.checkpoint_files import INDEX, CheckpointFiles
from modelcore.training.parallel import Ranks

logger = logging.getLogger(__name__)

VERSION = 2
CHECKPOINT_NAME = re.compile(r"step-(\d{8})")
NO_MANIFEST = CheckpointFiles.NO_MANIFEST


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
        random: What :func:`random_state` gave.
        keep: Number of newest checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: If the disk is full; earlier checkpoints are then still there.
    """
    path = folder / f"step-{step:08d}"
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
        write_json(fresh / "state.json", state)
        written(fresh / "state.json")
        manifest = {
            name: {"size": (fresh / name).stat().st_size, "sha256": sums[name].result()} for name in sorted(sums)
        }
        for each in flushed:
            each.result()
        write_json(fresh / "manifest.json", manifest)
    logger.info("checkpoint=%s", path)
    # Ones with a higher number were passed over as damaged; this run will replace them when it gets there.
    for old in [other for other in _checkpoints(folder) if other.name <= path.name][keep:]:
        storage.delete_directory(old)
    return path


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run's checkpoints while the block runs.

    The folder itself is locked, so nothing has to be cleaned up after a process that was killed. Where the file system
    has no locks, a warning says so.

    Args:
        folder: Where the checkpoints are; made if it is missing, and removed again if it stays empty.

    Raises:
        InputError: If another process is at it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"another process is training with the checkpoints in {folder}; wait for it or name another place"
        ) from None
    except OSError as error:
        logger.warning("checkpoints=%s cannot be locked: %s", folder, error)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def remove_checkpoints(folder: Path) -> None:
    """Removes a run's checkpoints and their folder, the newest last: a run killed meanwhile finds it and is done."""
    for path in reversed(_checkpoints(folder)):
        storage.delete_directory(path)
    shutil.rmtree(folder, ignore_errors=True)


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
        InputError: As in :func:`latest_checkpoint` and :func:`load_checkpoint`.
    """
    state = None
    if ranks.first and (path := latest_checkpoint(folder)) is not None:
        state = load_checkpoint(path, model, parts, identity=identity)
        logger.info("resumes from %s", path)
    if ranks.size > 1 and (state := ranks.share_json(state)) is not None:
        for part in with_weights(model, parts).values():
            part.load_state_tensors(ranks.share_tensors(part.state_tensors()))
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, or None if there is none.

    Folders whose files are not what their manifest says are passed over with a warning. What a killed process left
    half-written is removed.

    Raises:
        InputError: If there are checkpoints and all are damaged. To start anew could cost weeks, and would overwrite
            what can still be saved of them by hand.
    """
    remove_leftovers(folder, CHECKPOINT_NAME)
    faults = {}
    for path in _checkpoints(folder):
        fault = find_fault(path)
        if fault is None:
            return path
        faults[path.name] = fault
        logger.warning("checkpoint %s is passed over: %s", path, fault)
    refuse_damaged(folder, faults)
    return None


def refuse_damaged(place: Path | str, faults: Mapping[str, str]) -> None:
    """Refuses to start anew where there are only damaged checkpoints.

    Args:
        place: Where they are.
        faults: What is wrong with each, by its name. Those without a manifest are no checkpoints.

    Raises:
        InputError: If there is one.
    """
    for name, fault in faults.items():
        if fault != NO_MANIFEST:
            raise InputError(
                f"every checkpoint in {place} is damaged, {name} because {fault}; "
                "put back a good one, or remove the folder to start anew"
            )


def find_fault(path: Path) -> str | None:
    """What is wrong with the files of the checkpoint at ``path`` by its manifest, or None if nothing is."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name in [INDEX if INDEX in manifest else "model.safetensors", "state.json", *sorted(manifest)]:
            if not (path / name).is_file():
                return f"{name} is missing"
            if (size := (path / name).stat().st_size) != manifest[name]["size"]:
                return f"{name} has {size} bytes and should have {manifest[name]['size']}"
        names = sorted(manifest)
        for name, found in zip(names, file_digests([path / name for name in names]), strict=True):
            if found != manifest[name]["sha256"]:
                return f"{name} does not have the SHA-256 sum in manifest.json"
    except (FileNotFoundError, NotADirectoryError):
        return NO_MANIFEST
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json cannot be read ({type(error).__name__})"
    return None


def load_checkpoint(
    path: Path, model: GPT, parts: Mapping[str, Part], *, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Puts what a checkpoint holds in place.

    The random generators are not touched yet: call :func:`restore_random_state` with the result right before the
    first step, when nothing is left to be built that could draw from them.

    Args:
        path: A folder that :func:`latest_checkpoint` gave.
        model: A model of the shape that ``identity`` describes.
        parts: As in :func:`save_checkpoint`.
        identity: What the run that resumes is; compared with what the checkpoint's run was.

    Returns:
        The content of ``state.json``.

    Raises:
        InputError: Naming the first setting that differs, if the checkpoint is of another run.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
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


def random_state(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """The random generators' state as plain JSON values: torch's on every rank, Python's and NumPy's on this one."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": [_encode(each) for each in ranks.gather(torch.get_rng_state())],
        "cuda": [_encode(each) for each in ranks.gather(torch.cuda.get_rng_state(device))]
        if device.type == "cuda"
        else [],
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def restore_random_state(state: Mapping[str, Any] | None, *, seed: int, device: torch.device, ranks: Ranks) -> None:
    """Sets the random generators to what a checkpoint's state holds, so that dropout goes on where it was.

    A rank that the checkpoint knows nothing of, because there were fewer, gets generators of its own: ranks that
    dropped the same activations would be less random than one alone. The first one of a fresh run is left alone.

    Args:
        state: A checkpoint's state; None for a fresh run.
        seed: The run's seed.
        device: Where this rank computes.
        ranks: The processes that train together.
    """
    saved = state["random"] if state is not None else {"torch": [], "cuda": []}
    if ranks.rank >= max(len(saved["torch"]), 1):
        step = state["step"] if state is not None else 0
        torch.manual_seed(int(np.random.SeedSequence([seed, step, ranks.rank]).generate_state(1, np.uint64)[0]))
    elif state is not None:
        torch.set_rng_state(_decode(saved["torch"][ranks.rank]))
        if device.type == "cuda" and ranks.rank < len(saved["cuda"]):
            torch.cuda.set_rng_state(_decode(saved["cuda"][ranks.rank]), device)
    if state is not None:
        version, numbers, gauss = saved["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = saved["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


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


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _checkpoints(folder: Path) -> list[Path]:
    """What is named like a checkpoint, newest first."""
    found = [path for path in folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


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
