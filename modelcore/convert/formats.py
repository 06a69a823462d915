"""From any format that can be read to any that can be written; the source's is found by looking at it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from modelcore.adapters import load_adapter, merge
from modelcore.atomic import atomic_directory
from modelcore.convert.huggingface import read_huggingface, write_huggingface
from modelcore.convert.verification import check_tokenizer, difference_from_ours, difference_from_transformers
from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.models.native import FORMAT, load_model, read_json, save_model
from modelcore.tokenizers import Tokenizer, has_tokenizer

logger = logging.getLogger(__name__)

Format = Literal["native", "huggingface"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source_format: What the source was found to be.
        max_logit_difference: Between the source and the files written, in fp32.
        verified_by: Who loaded the Hugging Face side of it: ``transformers``, or ``modelcore`` where that is not
            installed.
        files: Names of the files written.
        size: Their bytes in all.
    """

    source_format: str
    max_logit_difference: float
    verified_by: Literal["transformers", "modelcore"]
    files: tuple[str, ...]
    size: int


def detect_format(path: Path) -> str:
    """What a model folder is: ``native``, ``huggingface`` or ``peft``.

    Raises:
        InputError: If it is none of them.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; a model folder is needed")
    if path.suffix in _PICKLES and path.is_file():
        raise InputError(f"{path} is a pickle, which can run code when it is read; give a folder with safetensors")
    if path.is_file():
        raise InputError(f"{path} is a file; the folder of a model, with its config.json, is needed")
    if (path / "adapter_config.json").is_file():
        return "peft"
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is no model folder: it has no config.json")
    fields = read_json(path / "config.json")
    if fields.get("format") == FORMAT:
        return "native"
    if "model_type" in fields:
        return "huggingface"
    raise InputError(f"{path / 'config.json'} describes neither a native model nor a Hugging Face one")


def read_model(source: Path) -> GPT:
    """The model in a folder of any format that can be read, in evaluation mode.

    Raises:
        InputError: If the folder is no model, is only an adapter, or is damaged.
    """
    source = Path(source)
    kind = detect_format(source)
    if kind == "peft":
        raise InputError(f"{source} is an adapter; name the model it was trained on, and the adapter beside it")
    return load_model(source) if kind == "native" else read_huggingface(source)


def convert(source: Path, dest: Path, to: Format, *, adapter: Path | None = None) -> Conversion:
    """Writes the model in ``source`` to the folder ``dest`` in another format, and checks the result.

    ``dest`` is replaced in one step, once the files written have been loaded and give the source's logits.

    Args:
        source: A native or Hugging Face folder.
        dest: Where to write; a model that is there is replaced.
        to: The format to write.
        adapter: A LoRA adapter of the source, merged in fp32 before.

    Raises:
        InputError: If an input is wrong, or ``dest`` holds something that is no model.
        ConversionError: If the files written do not compute what the source does.
    """
    source, dest = Path(source), Path(dest)
    if to not in get_args(Format):
        raise InputError(f"cannot convert to {to!r}; formats: {', '.join(get_args(Format))}")
    source_format = detect_format(source)
    _check_destination(source, dest)
    model = read_model(source)
    tokenizer = Tokenizer.load(source) if has_tokenizer(source) else None
    if tokenizer is None:
        logger.warning("%s holds no tokenizer: the result is written without one", source)
    if adapter is not None:
        load_adapter(adapter, model, base=source if source_format == "native" else None)
        merge(model)
    with atomic_directory(dest) as folder:
        by_transformers = None
        if to == "huggingface":
            write_huggingface(folder, model, tokenizer)
            difference = difference_from_ours(model, read_huggingface(folder), folder)
            by_transformers = difference_from_transformers(model, folder)
            if tokenizer is not None:
                check_tokenizer(tokenizer, folder)
        else:
            save_model(folder, model, None)
            if tokenizer is not None:
                tokenizer.save(folder)
            written = load_model(folder)
            difference = difference_from_ours(model, written, folder)
            if source_format == "huggingface" and adapter is None:
                by_transformers = difference_from_transformers(written, source)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = tuple(file.relative_to(folder).as_posix() for file in files)
        size = sum(file.stat().st_size for file in files)
    if by_transformers is not None:
        difference = max(difference, by_transformers)
    return Conversion(
        source_format, difference, "modelcore" if by_transformers is None else "transformers", names, size
    )


def _check_destination(source: Path, dest: Path) -> None:
    """Refuses to replace the source, or anything that does not look like a model."""
    if dest.resolve() == source.resolve():
        raise InputError(f"{dest} is the source itself; name another folder to write to")
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return
    try:
        detect_format(dest)
    except InputError:
        raise InputError(f"{dest} exists and is no model folder; it is left as it is, name another one") from None
