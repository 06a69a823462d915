"""The project's own model folder: ``config.json``, ``model.safetensors`` and a tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from modelcore.atomic import write_json
from modelcore.errors import InputError
from modelcore.files import file_digest, read_json
from modelcore.gptx import GPT, GPTConfig
from modelcore.models.weights import check_depth, check_tensors, empty_model, fill_model, map_tensors, tensor_shapes
from modelcore.tokenizers import copy_tokenizer, find_tokenizer

FORMAT = "modelcore"
VERSION = 1

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_model(folder: Path, model: GPT, tokenizer_model: Path | None) -> None:
    """Writes a model into ``folder``, in the dtype that its parameters have.

    A tied head is stored once, as the embedding. The folder is usually the temporary one of
    :func:`modelcore.atomic.atomic_directory`, so that a reader never meets half a model.

    Args:
        folder: An existing folder.
        model: The model, on any device.
        tokenizer_model: The tokenizer's file to copy beside the weights (``tokenizer.model`` or ``tokenizer.json``), or
            None for a model without one.

    Raises:
        ValueError: If the model holds adapters; merge them first.
    """
    folder = Path(folder)
    if model.state_dict().keys() != empty_model(model.config).state_dict().keys():
        raise ValueError("the model has parameters beyond its configuration's; merge its adapters before saving")
    state = model.state_dict()
    tensors = {name: state[name].detach().cpu().contiguous() for name in tensor_shapes(model)}
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "version": VERSION, "model": model.config.to_dict()})
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if tokenizer_model is not None:
        copy_tokenizer(tokenizer_model, folder)


def load_model(folder: Path, device: torch.device | str = "cpu", *, apart: bool = False) -> GPT:
    """Reads what :func:`save_model` wrote: the model in evaluation mode, in the dtype stored.

    The weights are mapped from the file, not copied, as long as they stay on the CPU and nobody writes to them.

    Args:
        folder: The model's folder.
        device: Where the model is to be.
        apart: As in :func:`~modelcore.models.weights.map_tensors`.

    Raises:
        InputError: If the folder is no native model, of a newer version, or its weights are truncated, of another
            shape, or not the ones its configuration asks for.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = map_tensors(folder / WEIGHTS_FILE, apart=apart)
    check_depth(folder / WEIGHTS_FILE, tensors, config)
    model = empty_model(config)
    check_tensors(folder / WEIGHTS_FILE, tensors, tensor_shapes(model))
    return fill_model(model, tensors).to(device)


def read_config(folder: Path) -> GPTConfig:
    """The configuration of the native model in ``folder``.

    Raises:
        InputError: If there is none, it is of a newer version, or a field is wrong.
    """
    path = Path(folder) / CONFIG_FILE
    fields = read_json(path)
    if fields.get("format") != FORMAT:
        raise InputError(f"{path} does not describe a modelcore model (its format is {fields.get('format')!r})")
    version = fields.get("version")
    if version != VERSION:
        raise InputError(f"{path} has format version {version!r}; this program reads version {VERSION}")
    if not isinstance(fields.get("model"), dict):
        raise InputError(f"{path} has no 'model' section with the model's sizes")
    try:
        return GPTConfig.from_dict(fields["model"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except TypeError as error:
        raise InputError(f"{path}: a model field has the wrong type ({error})") from error


def tokenizer_path(folder: Path) -> Path:
    """The file of the tokenizer of the native model in ``folder``.

    Raises:
        InputError: If it has none.
    """
    try:
        return find_tokenizer(Path(folder))
    except InputError as error:
        raise InputError(f"{error}; a model folder holds the tokenizer it was trained with") from None


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights file of the native model in ``folder``, in hexadecimal: what an adapter belongs to.

    Raises:
        InputError: If there is none.
    """
    path = Path(folder) / WEIGHTS_FILE
    try:
        return file_digest(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing") from None
