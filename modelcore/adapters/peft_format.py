"""Adapters in the format of Hugging Face's PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT names a module's matrices ``base_model.model.<module>.lora_A.weight`` (r, inputs) and ``….lora_B.weight``
(outputs, r); for GPT-2 too, whose own weights are stored the other way round. The digest of the base's weights goes
into a file of its own, which PEFT passes over.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modelcore.adapters.lora import HEAD, LoRAConfig, adaptable, add_lora, default_targets, lora_layers
from modelcore.atomic import write_json
from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.models.architectures import architecture_of
from modelcore.models.native import check_tensors, map_tensors, read_json, weights_digest

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base_model.json"

PICKLE_FILE = "adapter_model.bin"  # what PEFT wrote before 0.6

# What PEFT stores beside an adapter of the head: the head itself.
_HEAD_COPY = f"base_model.model.{HEAD}.base_layer.weight"

_BASE_DIGEST = "weights_sha256"

# Fields that say what the adapter computes, and are read.
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights"}

# Fields that change nothing about what a finished adapter computes.
_NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
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
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        for part, a, b in zip(layer.parts, torch.split(layer.a, config.rank), layer.b, strict=True):
            tensors[f"base_model.model.{part.name}.lora_A.weight"] = a.detach().cpu().contiguous()
            tensors[f"base_model.model.{part.name}.lora_B.weight"] = b.detach().cpu().contiguous()
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
    training = model.training
    with torch.random.fork_rng(devices=[]):  # the drawn start is replaced below, and no one else's draws change
        add_lora(model, config)
    ours: dict[str, Tensor] = {}
    for _, layer in lora_layers(model):
        for part, a, b in zip(layer.parts, torch.split(layer.a.data, config.rank), layer.b, strict=True):
            ours[f"base_model.model.{part.name}.lora_A.weight"] = a
            ours[f"base_model.model.{part.name}.lora_B.weight"] = b.data
    tensors = map_tensors(folder / WEIGHTS_FILE)
    head = tensors.pop(_HEAD_COPY, None)
    if head is not None and not torch.equal(head.to(model.head.weight), model.head.weight):
        raise InputError(f"the adapter in {folder} was trained on a model with another head")
    check_tensors(folder / WEIGHTS_FILE, tensors, {name: tuple(tensor.shape) for name, tensor in ours.items()})
    for name, tensor in tensors.items():
        ours[name].copy_(tensor)
    return model.train(training)


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
        if name not in _READ | _NEUTRAL and value and value != "none":
            raise InputError(f"{path}: {name} is {value!r}; this variant of LoRA is not supported")
    start = fields.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise InputError(f"{path}: init_lora_weights is {start!r}; adapters that change their base are not supported")
    targets = fields.get("target_modules")
    if isinstance(targets, str):
        try:
            pattern = re.compile(rf"(?!{HEAD}$).*" if targets == "all-linear" else targets)
        except re.error as error:
            raise InputError(f"{path}: target_modules {targets!r} is no pattern: {error}") from None
        names = [part.name for parts in adaptable(model.config).values() for part in parts]
        targets = [name for name in names if pattern.fullmatch(name)]
        if not targets:
            raise InputError(f"{path}: target_modules {pattern.pattern!r} matches no linear layer of this model")
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        raise InputError(f"{path}: target_modules is {targets!r}; a list of module names is needed")
    try:
        return LoRAConfig(
            rank=fields.get("r", 8),
            alpha=float(fields.get("lora_alpha", 8)),
            dropout=float(fields.get("lora_dropout", 0.0)),
            targets=tuple(sorted(targets)),
            rslora=bool(fields.get("use_rslora", False)),
        )
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def _check_base(folder: Path, base: Path) -> None:
    path = folder / BASE_FILE
    if path.exists() and read_json(path).get(_BASE_DIGEST) != weights_digest(base):
        raise InputError(f"the adapter in {folder} was trained on another model than the one in {base}")
