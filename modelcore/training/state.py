"""Exact checkpoints: everything the next step depends on, so that a resumed run ends bit for bit like an unbroken one.

A checkpoint is a folder ``step-00000500/``::

    model.safetensors      the parameters that are trained
    optimizer.safetensors  the optimizer's state
    state.json             steps done, counters and curves, what the run is (identity), state of the random generators
    manifest.json          size and SHA-256 of the three files

It is written under another name, flushed to the disk and renamed, so a folder of that name is complete unless the
disk lied; the manifest finds that out. Samples need no state: they are a function of the step (see
:mod:`modelcore.data.loader`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modelcore.atomic import atomic_directory, write_json
from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.gptx.vocab_padding import with_padding, without_padding
from modelcore.training.optimizer import Optimizer

logger = logging.getLogger(__name__)

VERSION = 1
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
CHECKPOINT_NAME = re.compile(r"step-(\d{8})")


def save_checkpoint(
    folder: Path,
    step: int,
    model: GPT,
    optimizer: Optimizer,
    *,
    identity: Mapping[str, Any],
    progress: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes the checkpoint of a run after ``step`` steps and removes the oldest ones beyond ``keep``.

    Args:
        folder: Where the run's checkpoints are.
        step: Steps done.
        model: The model.
        optimizer: Its optimizer.
        identity: What must be the same for a run that resumes: plain JSON values, nested or not.
        progress: Counters and curves that the resumed run goes on with: plain JSON values.
        keep: Number of newest checkpoints to keep, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: If the disk is full; earlier checkpoints are then still there.
    """
    path = folder / f"step-{step:08d}"
    with atomic_directory(path) as fresh:
        save_file(_on_cpu(without_padding(model, _trained(model))), fresh / "model.safetensors")
        save_file(_on_cpu(without_padding(model, optimizer.state_tensors())), fresh / "optimizer.safetensors")
        state = {
            "version": VERSION,
            "step": step,
            "identity": identity,
            "progress": progress,
            "random": _random_state(),
        }
        write_json(fresh / "state.json", state)
        manifest = {name: {"size": (fresh / name).stat().st_size, "sha256": _sha256(fresh / name)} for name in _FILES}
        write_json(fresh / "manifest.json", manifest)
    for old in _checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, or None if there is none.

    Folders whose files are not what their manifest says are passed over with a warning. What a killed process left
    half-written is removed.
    """
    if folder.is_dir():
        for rest in [*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")]:
            shutil.rmtree(rest, ignore_errors=True)
    for path in _checkpoints(folder):
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path, fault)
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with the files of the checkpoint at ``path`` by its manifest, or None if nothing is."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name in _FILES:
            if not (path / name).is_file():
                return f"{name} is missing"
            if (size := (path / name).stat().st_size) != manifest[name]["size"]:
                return f"{name} has {size} bytes and should have {manifest[name]['size']}"
            if _sha256(path / name) != manifest[name]["sha256"]:
                return f"{name} does not have the SHA-256 sum in manifest.json"
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json cannot be read ({type(error).__name__})"
    return None


def load_checkpoint(path: Path, model: GPT, optimizer: Optimizer, *, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Puts a checkpoint's weights and optimizer state in place.

    The random generators are not touched yet: call :func:`restore_random_state` with the result right before the
    first step, when nothing is left to be built that could draw from them.

    Args:
        path: A folder that :func:`latest_checkpoint` gave.
        model: A model of the shape that ``identity`` describes.
        optimizer: Its optimizer.
        identity: What the run that resumes is; compared with what the checkpoint's run was.

    Returns:
        The content of ``state.json``.

    Raises:
        InputError: Naming the first setting that differs, if the checkpoint is of another run.
    """
    state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.get("version") != VERSION:
        raise InputError(f"checkpoint {path} has version {state.get('version')!r}; this program reads {VERSION}")
    ours, theirs = _flatten(identity), _flatten(state["identity"])
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"checkpoint {path} is of another run: {name} was {theirs.get(name)!r}, is now {ours.get(name)!r}; "
                "give the same settings to resume, or remove the checkpoint to start anew"
            )
    parameters = _trained(model)
    with torch.no_grad():
        for name, tensor in with_padding(model, load_file(path / "model.safetensors")).items():
            parameters[name].copy_(tensor)
    optimizer.load_state_tensors(with_padding(model, load_file(path / "optimizer.safetensors")))
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets the random generators of torch (and its GPUs), Python and NumPy to what a checkpoint's state holds."""
    saved = state["random"]
    torch.set_rng_state(_decode(saved["torch"]))
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_decode(each) for each in saved["cuda"][: torch.cuda.device_count()]])
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(each) for each in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def _checkpoints(folder: Path) -> list[Path]:
    """Folders named like checkpoints, newest first."""
    found = [path for path in folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


def _trained(model: GPT) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
