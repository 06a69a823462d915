"""Hugging Face's model folder, written and read as plain JSON and safetensors, without transformers.

The files are those of ``save_pretrained``: ``config.json``, ``generation_config.json``, ``model.safetensors`` (or, when
reading, shards listed in ``model.safetensors.index.json``), and the tokenizer's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from modelcore.atomic import write_json
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models.architectures import ARCHITECTURES, Architecture, architecture_of
from modelcore.models.native import (
    check_tensors,
    empty_model,
    fill_model,
    map_tensors,
    read_json,
    tensor_shapes,
)
from modelcore.tokenizers import Tokenizer

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HEAD = "lm_head.weight"


def write_huggingface(folder: Path, model: GPT, tokenizer: Tokenizer | None) -> None:
    """Writes ``model`` so that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load it.

    Args:
        folder: An existing folder, usually a temporary one.
        model: A GPT-2 or a Llama; adapters must be merged.
        tokenizer: Its tokenizer, or None for a model without one.

    Raises:
        InputError: If the model has no counterpart in transformers, or the tokenizer is another model's.
    """
    folder = Path(folder)
    architecture = architecture_of(model.config)
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for entry in architecture.tensor_maps(model.config):
        tensors |= entry.split(state[entry.ours].detach().cpu())
    special: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is not None:
        if tokenizer.vocab_size != model.config.vocab_size:
            raise InputError(
                f"the tokenizer {tokenizer.model_file} has {tokenizer.vocab_size} tokens and the model "
                f"{model.config.vocab_size}; they do not belong together"
            )
        special = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        }
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    write_json(folder / CONFIG_FILE, architecture.to_huggingface(model.config) | special | {"dtype": dtype})
    write_json(folder / GENERATION_FILE, {name: value for name, value in special.items() if value is not None})
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if tokenizer is not None:
        from modelcore.tokenizers.huggingface import export_huggingface

        tokenizer.save(folder)  # with it the folder can be made into a native model again
        export_huggingface(tokenizer, folder, model.config.context_length)


def read_huggingface(folder: Path) -> GPT:
    """The model in a Hugging Face folder, in evaluation mode and the dtype stored.

    Raises:
        InputError: If its architecture or a variant of it is not supported, a file is missing, truncated or a
            pickle, or its tensors are not those that its configuration asks for.
    """
    folder = Path(folder)
    architecture, config = _read_config(folder)
    source, theirs = _read_weights(folder)
    theirs = _normalized(source, theirs, architecture, config)
    model = empty_model(config)
    shapes = tensor_shapes(model)
    maps = architecture.tensor_maps(config)
    expected = {name: shape for entry in maps for name, shape in entry.shapes(shapes[entry.ours]).items()}
    check_tensors(source, theirs, expected)
    return fill_model(model, {entry.ours: entry.join([theirs[name] for name in entry.theirs]) for entry in maps})


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


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that names the weights, and all of them, from one file or from shards."""
    single, index = folder / WEIGHTS_FILE, folder / INDEX_FILE
    if single.is_file():
        return single, map_tensors(single)
    if index.is_file():
        return index, _read_shards(index)
    for name in _PICKLES:
        if (folder / name).exists():
            raise InputError(
                f"{folder / name} is a pickle, which can run code when it is read; save the model as safetensors"
            )
    raise InputError(f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} has no 'weight_map' from tensors to files")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(map(str, places.values()))):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(f"{index} names {shard!r}; shards must be .safetensors files in the same folder")
        tensors |= map_tensors(index.parent / shard)
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
