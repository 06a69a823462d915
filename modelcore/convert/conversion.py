"""From any format that can be read to any that can be written, every result loaded and compared with its source."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args

from modelcore.adapters import load_adapter, merge
from modelcore.atomic import atomic_directory, atomic_path, write_json
from modelcore.convert.formats import Format, SourceFormat, detect_format, read_model
from modelcore.convert.gguf import DType, default_dtype, read_gguf, write_gguf
from modelcore.convert.huggingface import (
    GENERATION_FILE,
    MAX_SHARD_BYTES,
    read_generation,
    read_huggingface,
    write_huggingface,
)
from modelcore.convert.peft import rewrite_adapter
from modelcore.convert.verification import (
    ROUNDING_BOUNDS,
    check_tokenizer,
    check_vocabulary,
    difference_after_rounding,
    difference_from_ours,
    difference_from_transformers,
)
from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.models.native import load_model, save_model
from modelcore.tokenizers import Tokenizer, has_tokenizer

logger = logging.getLogger(__name__)

# What a model's folder holds, whichever program wrote it; other files in one are somebody's.
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt")

Verifier = Literal["transformers", "peft", "gguf", "modelcore"]


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source_format: What the source was found to be.
        max_logit_difference: Between the source and the files written, in fp32.
        verified_by: Whose code loaded the foreign side of it: ``transformers``, ``peft`` or ``gguf``; ``modelcore``
            where there is none or it is not installed.
        files: Names of the files written.
        size: Their bytes in all.
    """

    source_format: SourceFormat
    max_logit_difference: float
    verified_by: Verifier
    files: tuple[str, ...]
    size: int


def convert(
    source: Path,
    dest: Path,
    to: Format,
    *,
    adapter: Path | None = None,
    base: Path | None = None,
    dtype: DType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Conversion:
    """Writes the model in ``source`` to ``dest`` in another format, and checks the result.

    ``dest`` is replaced in one step, once what was written has been loaded and gives the source's logits.

    Args:
        source: A native or Hugging Face folder, or a checkpoint of pretraining; for ``peft``, the folder of an adapter.
        dest: The folder to write, or for ``gguf`` the file, whose name ends in ``.gguf``. A model that is there is
            replaced.
        to: The format to write.
        adapter: A LoRA adapter of the source, merged in fp32 before.
        base: For ``peft`` alone, and needed there: the model that the adapter was trained on.
        dtype: For ``gguf`` alone: what weights are stored as; None: what they are.
        max_shard_bytes: For ``huggingface``: see :func:`~modelcore.convert.huggingface.write_huggingface`.

    Raises:
        InputError: If an input is wrong, or ``dest`` holds something that is no model.
        ConversionError: If what was written does not compute what the source does.
    """
    source, dest = Path(source), Path(dest)
    if to not in get_args(Format):
        raise InputError(f"cannot convert to {to!r}; formats: {', '.join(get_args(Format))}")
    if dtype is not None and to != "gguf":
        raise InputError(f"a dtype is chosen for GGUF alone; {to} keeps the weights' own")
    if base is not None and to != "peft":
        raise InputError(f"a base is for peft alone, not for {to}; give the model as the source, its adapter beside it")
    _check_destination(dest, to, [source, adapter, base])
    source_format = detect_format(source)
    if to == "peft":
        if base is None:
            raise InputError(f"name the model that the adapter {source} was trained on as the base")
        return _convert_adapter(source, dest, source_format, base)

    model = read_model(source)
    tokenizer = _tokenizer(source)
    if adapter is not None:
        load_adapter(adapter, model, base=source if source_format == "native" else None)
        merge(model)
    if to == "gguf":
        return _convert_to_gguf(dest, source_format, model, tokenizer, dtype)
    generation = read_generation(source)
    with atomic_directory(dest) as folder:
        by_transformers = None
        if to == "huggingface":
            write_huggingface(folder, model, tokenizer, generation, max_shard_bytes)
            difference = difference_from_ours(model, read_huggingface(folder), folder)
            by_transformers = difference_from_transformers(model, folder)
            if tokenizer is not None:
                check_tokenizer(tokenizer, folder)
        else:
            save_model(folder, model, None)
            if tokenizer is not None:
                tokenizer.save(folder)
            if generation:
                write_json(folder / GENERATION_FILE, generation)
            written = load_model(folder)
            difference = difference_from_ours(model, written, folder)
            if source_format == "huggingface" and adapter is None:
                by_transformers = difference_from_transformers(written, source)
        files = _files(folder)
    if by_transformers is None:
        return Conversion(source_format, difference, "modelcore", **files)
    return Conversion(source_format, max(difference, by_transformers), "transformers", **files)


def _convert_to_gguf(
    dest: Path, source_format: SourceFormat, model: GPT, tokenizer: Tokenizer | None, dtype: DType | None
) -> Conversion:
    exact = default_dtype(model)
    dtype = dtype or exact
    with atomic_path(dest) as path:
        write_gguf(path, model, tokenizer, name=dest.stem, dtype=dtype)
        written = read_gguf(path)
        if dtype in (exact, "f32"):
            difference = difference_from_ours(model, written, dest)
        else:
            difference = difference_after_rounding(model, written, dest, ROUNDING_BOUNDS[dtype])
        if tokenizer is not None:
            check_vocabulary(tokenizer, path)
        size = path.stat().st_size
    return Conversion(source_format, difference, "gguf", (dest.name,), size)


def _convert_adapter(source: Path, dest: Path, source_format: SourceFormat, base: Path) -> Conversion:
    if source_format != "peft":
        raise InputError(f"{source} is a {source_format} model; the source of a peft folder must be an adapter")
    native = base if detect_format(base) == "native" else None
    if native is None:
        logger.info("%s is no native model: the adapter is written without a digest of it", base)
    with atomic_directory(dest) as folder:
        difference, by_peft = rewrite_adapter(source, folder, read_model(base), native)
        files = _files(folder)
    return Conversion(source_format, difference, "peft" if by_peft else "modelcore", **files)


def _tokenizer(source: Path) -> Tokenizer | None:
    if has_tokenizer(source):
        return Tokenizer.load(source)
    logger.warning("%s holds no tokenizer: the result is written without one", source)
    return None


def _files(folder: Path) -> dict[str, Any]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = tuple(file.relative_to(folder).as_posix() for file in files)
    return {"files": names, "size": sum(file.stat().st_size for file in files)}


def _check_destination(dest: Path, to: Format, inputs: list[Path | None]) -> None:
    """Refuses to replace an input, or anything but a model of the kind that is written."""
    place = dest.resolve()
    for path in inputs:
        if path is not None and Path(path).resolve().is_relative_to(place):
            what = "is" if Path(path).resolve() == place else "holds"
            raise InputError(f"{dest} {what} what is converted; name another place to write to")
    if to == "gguf" and dest.suffix != ".gguf":
        raise InputError(f"{dest} does not end in .gguf; GGUF is one file, name it so")
    if not dest.exists() or (dest.is_dir() and to != "gguf" and not any(dest.iterdir())):
        return
    kind = {"gguf": "GGUF file", "peft": "adapter"}.get(to, "model folder")
    try:
        there = detect_format(dest)
    except InputError:
        there = None
    if there != to and {there, to} != {"native", "huggingface"}:
        raise InputError(f"{dest} exists and is no {kind}; it is left as it is, name another one")
    names = sorted(path.name for path in dest.iterdir()) if dest.is_dir() else []
    if others := [name for name in names if not any(fnmatch(name, known) for known in _MODEL_FILES)]:
        raise InputError(f"{dest} holds {others[0]} beside its {kind}; it is left as it is, name another one")
