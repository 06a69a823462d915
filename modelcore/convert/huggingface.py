"""Hugging Face's model folder, written and read as plain JSON and safetensors, without transformers.

The files are those of ``save_pretrained``: ``config.json``, ``generation_config.json``, ``model.safetensors`` (or
shards listed in ``model.safetensors.index.json``), and the tokenizer's.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modelcore.atomic import write_json
from modelcore.convert.vocabulary import proven_vocab_size
from modelcore.errors import InputError
from modelcore.files import read_json
from modelcore.gptx import GPT, GPTConfig
from modelcore.models.architectures import ARCHITECTURES, Architecture, architecture_of
from modelcore.models.layout import TensorMap
from modelcore.models.weights import check_depth, check_tensors, empty_model, fill_model, map_tensors, tensor_shapes
from modelcore.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_SHARD_BYTES = 5_000_000_000
"""Largest file of weights: the size at which huggingface_hub cuts them."""

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HEAD = "lm_head.weight"

# Fields of a generation_config.json that are about the file, not about generation.
_ABOUT_THE_FILE = ("_from_model_config", "transformers_version")


def write_huggingface(
    folder: Path,
    model: GPT,
    tokenizer: Tokenizer | None,
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes ``model`` so that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load it.

    Args:
        folder: An existing folder, usually a temporary one.
        model: A model that transformers has too; adapters must be merged.
        tokenizer: Its tokenizer, or None for a model without one.
        generation: Fields of ``generation_config.json`` to carry over; the ids of special tokens are the tokenizer's
            if there is one. Where they list several ends of a text, and the tokenizer's is one of them, all stay.
        max_shard_bytes: Largest file of weights, unless one tensor alone is larger. Beyond it they are cut into
            shards, of which one at a time is held in memory.

    Raises:
        InputError: If the model has no counterpart in transformers, or the tokenizer is another model's.
    """
    folder = Path(folder)
    architecture = architecture_of(model.config)
    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    generation = dict(generation or {})
    if tokenizer is not None:
        tokenizer.check_model(model.config.vocab_size)
        special = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        }
    else:
        special |= {name: generation[name] for name in special if name in generation}
    ends = generation.get("eos_token_id")
    generation |= {name: value for name, value in special.items() if value is not None}
    if isinstance(ends, list) and special["eos_token_id"] in ends:
        generation["eos_token_id"] = ends
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    write_json(folder / CONFIG_FILE, architecture.to_huggingface(model.config) | special | {"dtype": dtype})
    write_json(folder / GENERATION_FILE, generation)
    _write_weights(folder, model, architecture.tensor_maps(model.config), max_shard_bytes)
    if tokenizer is not None:
        from modelcore.tokenizers.huggingface import export_huggingface

        tokenizer.save(folder)  # with it the folder can be made into a native model again
        export_huggingface(tokenizer, folder, model.config.context_length)


def read_huggingface(folder: Path, *, apart: bool = False) -> GPT:
    """The model in a Hugging Face folder, in evaluation mode and the dtype stored.

    Where the folder's tokenizer proves that the last rows of the vocabulary are padding, they are cut off.

    Args:
        folder: The folder.
        apart: As in :func:`~modelcore.models.weights.map_tensors`.

    Raises:
        InputError: If its architecture or a variant of it is not supported, a file is missing, truncated or a
            pickle, or its tensors are not those that its configuration asks for.
    """
    folder = Path(folder)
    architecture, config = _read_config(folder)
    source, theirs = _read_weights(folder, apart)
    check_depth(source, theirs, config)
    theirs = _normalized(source, theirs, architecture, config)
    shapes = tensor_shapes(empty_model(config))
    maps = architecture.tensor_maps(config)
    expected = {name: shape for entry in maps for name, shape in entry.shapes(shapes[entry.ours]).items()}
    check_tensors(source, theirs, expected)
    # Taken out one by one: what was joined does not stay mapped beside its parts.
    ours = {entry.ours: entry.join([theirs.pop(name) for name in entry.theirs]) for entry in maps}
    size = proven_vocab_size(folder)
    if size is not None and size < config.vocab_size:
        logger.info(
            "%s: the vocabulary has %d rows and its tokenizer %d tokens; the rows beyond are padding and are cut off",
            folder,
            config.vocab_size,
            size,
        )
        config = dataclasses.replace(config, vocab_size=size)
        ours |= {name: ours[name][:size] for name in ("embedding.weight", "head.weight") if name in ours}
    return fill_model(empty_model(config), ours)


def read_generation(folder: Path) -> dict[str, Any]:
    """The fields of a folder's ``generation_config.json`` that are about generation; empty if it has none.

    Raises:
        InputError: If the file is no JSON object.
    """
    path = Path(folder) / GENERATION_FILE
    if not path.is_file():
        return {}
    return {name: value for name, value in read_json(path).items() if name not in _ABOUT_THE_FILE}


def _write_weights(folder: Path, model: GPT, maps: list[TensorMap], max_shard_bytes: int) -> None:
    """Writes one file, or shards and their index, with no more than one file's tensors copied at a time."""
    state, shapes = model.state_dict(), tensor_shapes(model)
    width = model.embedding.weight.element_size()
    sizes = {
        name: math.prod(shape) * width for entry in maps for name, shape in entry.shapes(shapes[entry.ours]).items()
    }
    shards = _shards(sizes, max_shard_bytes)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [WEIGHTS_FILE]
    number, held = 0, dict[str, Tensor]()
    for entry in maps:
        for name, tensor in entry.split(state[entry.ours].detach().cpu()).items():
            held[name] = tensor
            if len(held) == len(shards[number]):
                save_file(held, folder / files[number], metadata={"format": "pt"})
                number, held = number + 1, {}
    if len(shards) > 1:
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / INDEX_FILE, index)


def _shards(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Tensors in their order, cut where a shard would grow beyond ``max_bytes``."""
    shards, total = [list[str]()], 0
    for name, size in sizes.items():
        if shards[-1] and total + size > max_bytes:
            shards.append([])
            total = 0
        shards[-1].append(name)
        total += size
    return shards


def _read_config(folder: Path) -> tuple[Architecture, GPTConfig]:
    path = folder / CONFIG_FILE
    fields = read_json(path)
    architecture = ARCHITECTURES.get(str(fields.get("model_type")))
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{path}: model_type {fields.get('model_type')!r} cannot be read; supported: {known}")
    if fields.get("quantization_config"):
        raise InputError(f"{path}: the weights are quantized; convert the unquantized model")
    try:
        return architecture, architecture.from_huggingface(fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: a field has the wrong type ({error})") from error


def _read_weights(folder: Path, apart: bool) -> tuple[Path, dict[str, Tensor]]:
    """The file that names the weights, and all of them, from one file or from shards."""
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file():
        return single, map_tensors(single, apart=apart)
    if index.is_file():
        return index, _read_shards(index, apart)
    for name in _PICKLES:
        if (folder / name).exists():
            raise InputError(
                f"{folder / name} is a pickle, which can run code when it is read; save the model as safetensors"
            )
    raise InputError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _read_shards(index: Path, apart: bool) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} has no 'weight_map' from tensors to files")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(map(str, places.values()))):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(f"{index} names {shard!r}; shards must be .safetensors files in the same folder")
        tensors |= map_tensors(index.parent / shard, apart=apart)
    if missing := sorted(places.keys() - tensors.keys()):
        raise InputError(f"{index} lists {missing[0]}, but {places[missing[0]]} does not hold it")
    return tensors


def _normalized(
    source: Path, tensors: dict[str, Tensor], architecture: Architecture, config: GPTConfig
) -> dict[str, Tensor]:
    """The tensors under their full names, without what old files carry besides: masks, and a tied head's copy."""
    prefix = architecture.PREFIX
    if not any(name.startswith(prefix) for name in tensors):  # saved from the model without its head
        tensors = {name if name == _HEAD else prefix + name: tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(architecture.IGNORED)}
    if config.tie_embeddings and _HEAD in tensors:
        head, embedding = tensors.pop(_HEAD), architecture.tensor_maps(config)[0].theirs[0]
        if embedding in tensors and not torch.equal(head, tensors[embedding]):
            raise InputError(f"{source}: {_HEAD} differs from {embedding}, but the configuration ties them")
    return tensors
