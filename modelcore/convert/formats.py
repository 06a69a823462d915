"""What a model folder is, found by looking at it, and its model read whatever the format."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from modelcore.convert.checkpoint import read_checkpoint
from modelcore.convert.huggingface import read_huggingface
from modelcore.errors import InputError
from modelcore.files import read_json
from modelcore.gptx import GPT
from modelcore.models.native import FORMAT, load_model
from modelcore.training.checkpoint_list import checkpoint_names

Format = Literal["native", "huggingface", "peft", "gguf"]
SourceFormat = Literal["native", "huggingface", "peft", "gguf", "checkpoint"]

GGUF_MAGIC = b"GGUF"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def detect_format(path: Path) -> SourceFormat:
    """What a model is: a ``native``, ``huggingface`` or ``peft`` folder, a ``gguf`` file, or a run's ``checkpoint``.

    The last may also be the folder that holds a run's checkpoints.

    Raises:
        InputError: If it is none of them.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; a model folder is needed")
    if path.is_file():
        return _format_of_file(path)
    if (path / "adapter_config.json").is_file():
        return "peft"
    if all((path / name).is_file() for name in ("state.json", "manifest.json")):
        return "checkpoint"
    if not (path / "config.json").is_file():
        if checkpoint_names(path):
            return "checkpoint"
        raise InputError(f"{path} is no model folder: it has no config.json")
    fields = read_json(path / "config.json")
    if fields.get("format") == FORMAT:
        return "native"
    if "model_type" in fields:
        return "huggingface"
    raise InputError(f"{path / 'config.json'} describes neither a native model nor a Hugging Face one")


def read_model(source: Path, *, apart: bool = False) -> GPT:
    """The model in a folder of any format that can be read, in evaluation mode.

    Args:
        source: The folder.
        apart: As in :func:`~modelcore.models.weights.map_tensors`.

    Raises:
        InputError: If the folder is no model, is only an adapter, or is damaged.
    """
    source = Path(source)
    kind = detect_format(source)
    if kind == "gguf":
        raise InputError(f"{source} is GGUF, which is written here but not read; give the folder it was made from")
    if kind == "peft":
        raise InputError(f"{source} is an adapter; name the model it was trained on, and the adapter beside it")
    if kind == "checkpoint":
        return read_checkpoint(source)
    return load_model(source, apart=apart) if kind == "native" else read_huggingface(source, apart=apart)


def _format_of_file(path: Path) -> SourceFormat:
    with open(path, "rb") as file:
        if file.read(len(GGUF_MAGIC)) == GGUF_MAGIC:
            return "gguf"
    if path.suffix in _PICKLES:
        raise InputError(f"{path} is a pickle, which can run code when it is read; give a folder with safetensors")
    raise InputError(f"{path} is a file; the folder of a model, with its config.json, is needed")
