"""Adapters of a model: put beside its layers, counted, merged into its weights.

Modules are named as PEFT names them in the Hugging Face model of the same architecture, so ``q_proj`` is a part of our
fused projection: each part has its own pair of matrices, as it would have there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import torch
from torch import nn

from modelcore.adapters.layers import LoRAConfig, LoRAEmbedding, LoRALayer, LoRALinear, Part, build_layer
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models.architectures import architecture_of
from modelcore.quantization import QuantizedLinear

logger = logging.getLogger(__name__)

HEAD = "lm_head"
"""The head's name in every Hugging Face model."""


def adaptable(config: GPTConfig) -> dict[str, list[Part]]:
    """The parts of each layer that can be adapted, by our layer's name (``blocks.0.attention.qkv``).

    They are the linear layers of the blocks, the head, and the embedding of the tokens. Where the last two are tied,
    each can still have a correction of its own, as in PEFT: the shared weight stays, and what is added differs.

    Raises:
        InputError: If the architecture has no counterpart in Hugging Face, so that its modules have no names there.
    """
    architecture = architecture_of(config)
    # The embedding comes first in every architecture.
    embedding = architecture.tensor_maps(config)[0].theirs[0].removesuffix(".weight")
    layers = {"embedding": [Part(embedding, 0, config.d_model)]}
    for i in range(config.n_layers):
        for projection in architecture.projections(config):
            if projection.qkv_by_head:
                raise InputError(
                    f"LoRA cannot adapt this architecture: {projection.parts[0]} holds its rows in another order than "
                    "modelcore does; architectures that can be adapted are GPT-2, Llama, Mistral and MPT"
                )
            parts, start = [], 0
            for name, rows in zip(projection.parts, projection.rows, strict=True):
                parts.append(Part(f"{architecture.LAYERS}.{i}.{name}", start, rows))
                start += rows
            layers[f"blocks.{i}.{projection.ours}"] = parts
    layers["head"] = [Part(HEAD, 0, config.vocab_size)]
    return layers


def default_targets(config: GPTConfig) -> tuple[str, ...]:
    """What is adapted unless told otherwise: every linear layer of every block, and a head that is not tied.

    The head matters where the base has hardly seen a token that the replies need, above all the end of the text. Its
    row in the head is then no more than every other unused token's, and no change below the head can tell them apart.
    """
    return architecture_of(config).LORA_TARGETS + (() if config.tie_embeddings else (HEAD,))


def add_lora(model: GPT, config: LoRAConfig) -> GPT:
    """Freezes a model and puts a fresh correction beside each layer that ``config`` names, in place.

    The blocks' linear layers may be quantized (:func:`modelcore.quantization.quantize_model`). The corrections' start
    is drawn from torch's global generator; seed it first for an adapter that can be made again.

    Returns:
        ``model``. Only its LoRA parameters are trainable.

    Raises:
        InputError: If a target names no module of the model that can be adapted.
    """
    layers = adaptable(model.config)
    targets = config.targets or default_targets(model.config)
    names = [part.name for parts in layers.values() for part in parts]
    for target in targets:
        if not any(is_named(target, name) for name in names):
            known = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise InputError(f"LoRA target {target!r} names no layer of this model; known: {', '.join(known)}")
    adapted = {}
    for layer, parts in layers.items():
        if chosen := [part for part in parts if any(is_named(target, part.name) for target in targets)]:
            adapted[layer] = build_layer(model.get_submodule(layer), chosen, config).train(model.training)
    model.requires_grad_(False)
    for layer, module in adapted.items():
        model.set_submodule(layer, module)
    return model


def lora_layers(model: GPT) -> Iterator[tuple[str, LoRALayer]]:
    """Each adapted layer with its name, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALayer):
            yield name, module


def lora_parameters(model: GPT) -> list[nn.Parameter]:
    """The parameters of the corrections, the only ones to train."""
    return [
        parameter
        for _, layer in lora_layers(model)
        for name, parameter in layer.named_parameters()
        if not name.startswith("base.")
    ]


def merge(model: GPT) -> GPT:
    """Puts each correction into its layer's weight, in place, and leaves a plain model whose parameters are trainable.

    Sums are in fp32 and rounded once to the base's dtype. The base's weight tensors are not written to: whoever shares
    them keeps the base. Where the corrections of a tied embedding and its head differ, or only one of the two has any,
    no shared weight computes the same: the merged model's are no longer tied, its configuration says so, and a warning
    is logged.

    An adapter that was tuned on a quantized base is merged into the full-precision model (QLoRA's practice). The
    result computes what the adapter does on that model; from what it did on the quantized one it differs by the
    rounding of the base.

    Returns:
        ``model``.

    Raises:
        InputError: If a layer is quantized.
    """
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise InputError(
            "an adapter cannot be merged into quantized weights, whose rounding is coarser than its corrections; "
            "load the model without quantization, then the adapter, and merge them"
        )
    stays_tied = not model.config.tie_embeddings or _same_correction(model.embedding, model.head)
    for name, layer in list(lora_layers(model)):
        model.set_submodule(name, layer.merged())
    if not stays_tied:
        model.config = dataclasses.replace(model.config, tie_embeddings=False)
        logger.warning(
            "the adapter changes the head otherwise than the embedding it was tied to: merged, they are two weights, "
            "and the model has %d parameters more",
            model.head.weight.numel(),
        )
    elif model.config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model.requires_grad_(True)


def _same_correction(embedding: nn.Module, head: nn.Module) -> bool:
    """Whether a tied embedding and its head stay one weight when their corrections are merged."""
    if isinstance(embedding, LoRAEmbedding) and isinstance(head, LoRALinear):
        return (
            not head.config.dora
            and head.config.scale == embedding.config.scale
            and torch.equal(head.a, embedding.b.T)
            and torch.equal(head.b[0], embedding.a.T)
        )
    return not isinstance(embedding, LoRAEmbedding) and not isinstance(head, LoRALinear)


def is_named(target: str, module: str) -> bool:
    """PEFT's rule: a target is a module's full name, or the end of it from a dot on."""
    return module == target or module.endswith(f".{target}")
