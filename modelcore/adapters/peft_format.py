"""Adapters in the format of Hugging Face's PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT names a module's matrices ``base_model.model.<module>.lora_A.weight`` (r, inputs) and ``….lora_B.weight``
(outputs, r); for GPT-2 too, whose own weights are stored the other way round. DoRA adds
``….lora_magnitude_vector`` (outputs,); an embedding's are ``….lora_embedding_A`` (r, vocabulary) and
``….lora_embedding_B`` (width, r). The digest of the base's weights goes into a file of its own, which PEFT passes over.

Of a tied model PEFT (0.21) adapts the head, the embedding or both without touching the weight they share, and stores
that weight besides. With ``ensure_weight_tying`` it stores the same matrices twice, turned. All of these are read; what
is written never needs the option.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modelcore.adapters.layers import LoRAConfig
from modelcore.adapters.lora import HEAD, adaptable, add_lora, default_targets, is_named, lora_layers
from modelcore.atomic import write_json
from modelcore.errors import InputError
from modelcore.files import read_json
from modelcore.gptx import GPT
from modelcore.models.architectures import architecture_of
from modelcore.models.native import weights_digest
from modelcore.models.weights import check_tensors, map_tensors
from modelcore.quantization import QuantizedLinear

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base_model.json"

PICKLE_FILE = "adapter_model.bin"  # what PEFT wrote before 0.6

_PREFIX = "base_model.model."

# What PEFT stores beside an adapter of the head or the embedding: the base's own weight.
_COPY = ".base_layer.weight"

_BASE_DIGEST = "weights_sha256"

# Fields that say what the adapter computes, and are read.
_READ = {
    "ensure_weight_tying",
    "exclude_modules",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "target_modules",
    "use_dora",
    "use_rslora",
}

# Fields that change nothing about what a finished adapter computes.
_NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}

# Ways to start that leave the base's weights alone; the others (PiSSA, OLoRA …) need a base changed in the same way.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")


def save_adapter(folder: Path, model: GPT, base: Path | None = None) -> None:
    """Writes a model's LoRA matrices, and nothing of the model, into ``folder``.

    Args:
        folder: An existing folder, usually a temporary one.
        model: A model that :func:`~modelcore.adapters.lora.add_lora` has changed.
        base: The native folder that the model was loaded from; its weights' digest is recorded.

    Raises:
        ValueError: If the model has no LoRA layers.
    """
    layers = [layer for _, layer in lora_layers(model)]
    if not layers:
        raise ValueError("the model has no LoRA layers")
    config = layers[0].config
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _tensors(model).items()}
    architecture = architecture_of(model.config)
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if float(config.alpha).is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets or default_targets(model.config)),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "fan_in_fan_out": any(projection.transposed for projection in architecture.projections(model.config)),
        "bias": "none",
        "init_lora_weights": True,
    }
    write_json(Path(folder) / CONFIG_FILE, fields)
    # One entry of metadata: the safetensors library writes several in an order that differs from run to run.
    save_file(tensors, Path(folder) / WEIGHTS_FILE, metadata={"format": "pt"})
    if base is not None:
        write_json(Path(folder) / BASE_FILE, {_BASE_DIGEST: weights_digest(base)})


def load_adapter(folder: Path, model: GPT, base: Path | None = None) -> GPT:
    """Adds the adapter in ``folder``, one of ours or one that PEFT saved, to a model, in place.

    Args:
        folder: The adapter's folder.
        model: The plain model it was trained on.
        base: The native folder that ``model`` was loaded from. If the adapter records what it was trained on, they
            must agree.

    Returns:
        ``model``, in the mode (training or evaluation) it was in.

    Raises:
        InputError: If the adapter is damaged, of a kind that is not supported, was trained on another model, or its
            tensors are not those that its configuration asks for in this model.
    """
    folder = Path(folder)
    config = read_adapter_config(folder, model)
    if (folder / PICKLE_FILE).exists() and not (folder / WEIGHTS_FILE).exists():
        raise InputError(
            f"{folder / PICKLE_FILE} is a pickle, which can run code when it is read; save the adapter as safetensors"
        )
    if base is not None:
        _check_base(folder, base)
    tensors = map_tensors(folder / WEIGHTS_FILE)
    if _stores_tied_head(folder, tensors):
        config = dataclasses.replace(config, targets=(*config.targets, HEAD))
    _check_copies(folder, model, tensors)
    with torch.random.fork_rng(devices=[]):  # the drawn start is replaced below, and no one else's draws change
        add_lora(model, config)
    ours = _tensors(model)
    check_tensors(folder / WEIGHTS_FILE, tensors, {name: tuple(tensor.shape) for name, tensor in ours.items()})
    for name, tensor in tensors.items():
        ours[name].copy_(tensor)
    return model


def read_adapter_config(folder: Path, model: GPT) -> LoRAConfig:
    """What an adapter's ``adapter_config.json`` says, its target modules resolved for ``model``.

    Raises:
        InputError: If the file is missing or damaged, or asks for something that is not plain LoRA.
    """
    path = Path(folder) / CONFIG_FILE
    fields = read_json(path)
    if fields.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {fields.get('peft_type')!r}; only 'LORA' is supported")
    for name, value in fields.items():
        if name == "modules_to_save" and value:
            raise InputError(
                f"{path}: modules_to_save is {value!r}: whole layers are stored beside the low-rank corrections; "
                "merge the adapter with peft and convert the merged model"
            )
        if name not in _READ | _NEUTRAL and value and value != "none":
            raise InputError(f"{path}: {name} is {value!r}; this variant of LoRA is not supported")
    start = fields.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise InputError(f"{path}: init_lora_weights is {start!r}; adapters that change their base are not supported")
    targets = _targets(path, fields, model)
    try:
        return LoRAConfig(
            rank=fields.get("r", 8),
            alpha=float(fields.get("lora_alpha", 8)),
            dropout=float(fields.get("lora_dropout", 0.0)),
            targets=tuple(sorted(targets)),
            rslora=bool(fields.get("use_rslora", False)),
            dora=bool(fields.get("use_dora", False)),
        )
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def _targets(path: Path, fields: dict[str, Any], model: GPT) -> list[str]:
    """The target modules that ``fields`` choose, all of which ``model`` has; in full where some are left out."""
    names = [part.name for parts in adaptable(model.config).values() for part in parts]
    targets = fields.get("target_modules")
    if isinstance(targets, str):
        # PEFT's "all-linear" leaves the head out.
        blocks = architecture_of(model.config).LAYERS
        pattern = rf"{re.escape(blocks)}\..*" if targets == "all-linear" else targets
        targets = _matching(path, "target_modules", pattern, names)
        if not targets:
            raise InputError(f"{path}: target_modules {pattern!r} matches no layer of this model")
    elif not _is_list_of(str, targets) or not targets:
        raise InputError(f"{path}: target_modules is {targets!r}; a list of module names is needed")
    # As in PEFT, targets that only other models have do no harm as long as one is found; add_lora refuses the rest.
    targets = [target for target in targets if any(is_named(target, name) for name in names)] or targets
    excluded, layers = fields.get("exclude_modules"), fields.get("layers_to_transform")
    if not excluded and layers in (None, []):
        return targets
    chosen = [name for name in names if any(is_named(target, name) for target in targets)]
    if isinstance(excluded, str):
        left_out = _matching(path, "exclude_modules", excluded, names)
        chosen = [name for name in chosen if name not in left_out]
    elif _is_list_of(str, excluded or []):
        chosen = [name for name in chosen if not any(is_named(other, name) for other in excluded or [])]
    else:
        raise InputError(f"{path}: exclude_modules is {excluded!r}; a list of module names is needed")
    if layers not in (None, []) and not isinstance(fields.get("target_modules"), str):
        wanted = layers if isinstance(layers, list) else [layers]
        if not _is_list_of(int, wanted):
            raise InputError(f"{path}: layers_to_transform is {layers!r}; numbers of layers are needed")
        # A module that is named in full is adapted in any case.
        numbers = {name: re.search(r"\.(\d+)\.", name) for name in chosen}
        chosen = [name for name, n in numbers.items() if name in targets or (n is not None and int(n[1]) in wanted)]
    if not chosen:
        raise InputError(f"{path}: of target_modules {targets!r} no layer is left")
    return chosen


def _matching(path: Path, field: str, pattern: str, names: list[str]) -> list[str]:
    """The names that a pattern describes from end to end."""
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise InputError(f"{path}: {field} {pattern!r} is no pattern: {error}") from None


def _is_list_of(kind: type, value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _tensors(model: GPT) -> dict[str, Tensor]:
    """All matrices of a model's adapter by the names they have in the file; they share the parameters' memory."""
    return {_PREFIX + name: tensor for _, layer in lora_layers(model) for name, tensor in layer.tensors().items()}


def _stores_tied_head(folder: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether the file holds a correction of the head that the configuration's targets do not name.

    PEFT takes the head out of the targets when it ties the head's correction to the embedding's.
    """
    fields = read_json(folder / CONFIG_FILE)
    return bool(fields.get("ensure_weight_tying")) and f"{_PREFIX}{HEAD}.lora_A.weight" in tensors


def _check_copies(folder: Path, model: GPT, tensors: dict[str, Tensor]) -> None:
    """Takes the copies of the base's own weights out of ``tensors``; they must be the model's.

    Raises:
        InputError: If one of them is not.
    """
    embedding, head = (adaptable(model.config)[name][0].name for name in ("embedding", "head"))
    for name, module, what in ((embedding, model.embedding, "embedding"), (head, model.head, "head")):
        copy = tensors.pop(_PREFIX + name + _COPY, None)
        if copy is None or isinstance(module, QuantizedLinear):  # of rounded weights nobody can tell
            continue
        if not torch.equal(copy.to(module.weight), module.weight):
            raise InputError(f"the adapter in {folder} was trained on a model with another {what}")


def _check_base(folder: Path, base: Path) -> None:
    path = folder / BASE_FILE
    if path.exists() and read_json(path).get(_BASE_DIGEST) != weights_digest(base):
        raise InputError(f"the adapter in {folder} was trained on another model than the one in {base}")
