"""LoRA: a low-rank correction beside frozen linear layers (Hu et al. 2021).

Modules are named as PEFT names them in the Hugging Face model of the same architecture, so ``q_proj`` is a part of our
fused projection: each part has its own pair of matrices, as it would have there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models.architectures import architecture_of

HEAD = "lm_head"
"""The head's name in every Hugging Face model."""


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers are adapted, and how.

    Attributes:
        rank: Rank r of each correction.
        alpha: The correction is scaled by alpha / r.
        dropout: Probability of dropping an input of the correction while training.
        targets: Names of modules, in full or from some dot on, as in PEFT: ``q_proj``, ``mlp.c_fc``,
            ``model.layers.0.self_attn.q_proj``. None of them means :func:`default_targets`.
        rslora: Scale by alpha / sqrt(r) instead (rsLoRA, Kalajdzievski 2023).

    Raises:
        InputError: If a number is out of range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rslora: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"LoRA rank is {self.rank!r}; it must be a whole number of 1 or more")
        if not self.alpha > 0:
            raise InputError(f"LoRA alpha is {self.alpha}; it must be above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"LoRA dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Part:
    """A module of the Hugging Face model: some rows of one of our linear layers.

    Attributes:
        name: Its full name there, for example ``model.layers.0.self_attn.k_proj``.
        start: First of our rows that it takes.
        rows: How many it takes.
    """

    name: str
    start: int
    rows: int


class LoRALinear(nn.Module):
    """A frozen linear layer with a correction on some parts of its output.

    Part i gets ``scale · B_i A_i x``. The parts' A matrices lie one above the other, so that they are one
    product; as in PEFT they start uniform (Kaiming), the B matrices at zero.

    Attributes:
        base: The frozen layer.
        a: (parts · r, inputs) in fp32.
        b: One (rows of the part, r) matrix a part, in fp32.

    Args:
        base: The layer, (inputs → outputs).
        parts: The parts to correct, in the order of their rows.
        config: Rank, scale and dropout.
    """

    def __init__(self, base: nn.Linear, parts: list[Part], config: LoRAConfig) -> None:
        super().__init__()
        self.base, self.parts, self.config = base, parts, config
        fp32 = functools.partial(torch.zeros, dtype=torch.float32, device=base.weight.device)
        self.a = nn.Parameter(fp32(len(parts) * config.rank, base.in_features))
        self.b = nn.ParameterList(fp32(part.rows, config.rank) for part in parts)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.dropout = nn.Dropout(config.dropout)

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, for those who ask for its dtype or device."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, inputs) to (…, outputs) in the base layer's dtype; the correction is computed in fp32."""
        y = cast(Tensor, self.base(x))
        h = F.linear(self.dropout(x).to(self.a.dtype), self.a * self.config.scale)  # (…, parts · r)
        slices, end = [], 0
        for part, low, b in zip(self.parts, torch.split(h, self.config.rank, dim=-1), self.b, strict=True):
            if part.start > end:
                slices.append(h.new_zeros(*h.shape[:-1], part.start - end))
            slices.append(F.linear(low, b))  # (…, rows of this part)
            end = part.start + part.rows
        if end < self.base.out_features:
            slices.append(h.new_zeros(*h.shape[:-1], self.base.out_features - end))
        delta = torch.cat(slices, dim=-1) if len(slices) > 1 else slices[0]  # (…, outputs)
        return y + delta.to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer with the correction added to its weight, summed in fp32 and rounded once to its dtype."""
        weight = self.base.weight.float().clone()
        for part, a, b in zip(self.parts, torch.split(self.a, self.config.rank), self.b, strict=True):
            weight[part.start : part.start + part.rows] += self.config.scale * (b @ a)
        self.base.weight = nn.Parameter(weight.to(self.base.weight.dtype))
        return self.base


def adaptable(config: GPTConfig) -> dict[str, list[Part]]:
    """The parts of each linear layer that can be adapted, by our layer's name (``blocks.0.attention.qkv``).

    A tied head is not among them: it is the embedding too.

    Raises:
        InputError: If the architecture has no counterpart in Hugging Face, so that its modules have no names there.
    """
    architecture = architecture_of(config)
    layers = {}
    for i in range(config.n_layers):
        for projection in architecture.projections(config):
            parts, start = [], 0
            for name, rows in zip(projection.parts, projection.rows, strict=True):
                parts.append(Part(f"{architecture.LAYERS}.{i}.{name}", start, rows))
                start += rows
            layers[f"blocks.{i}.{projection.ours}"] = parts
    if not config.tie_embeddings:
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

    The A matrices are drawn from torch's global generator; seed it first for an adapter that can be made again.

    Returns:
        ``model``. Only its LoRA parameters are trainable.

    Raises:
        InputError: If a target names no module of the model.
    """
    layers = adaptable(model.config)
    targets = config.targets or default_targets(model.config)
    names = [part.name for parts in layers.values() for part in parts]
    for target in targets:
        if not any(_names(target, name) for name in names):
            known = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise InputError(f"LoRA target {target!r} names no linear layer of this model; known: {', '.join(known)}")
    model.requires_grad_(False)
    for layer, parts in layers.items():
        chosen = [part for part in parts if any(_names(target, part.name) for target in targets)]
        if chosen:
            adapted = LoRALinear(cast(nn.Linear, model.get_submodule(layer)), chosen, config)
            model.set_submodule(layer, adapted.train(model.training))
    return model


def lora_layers(model: GPT) -> Iterator[tuple[str, LoRALinear]]:
    """Each adapted layer with its name, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def lora_parameters(model: GPT) -> list[nn.Parameter]:
    """The parameters of the corrections, the only ones to train."""
    return [parameter for _, layer in lora_layers(model) for parameter in (layer.a, *layer.b)]


def merge(model: GPT) -> GPT:
    """Adds each correction to its layer's weight, in place, and leaves a plain model whose parameters are trainable.

    The base's weight tensors are not written to: whoever shares them keeps the base.

    Returns:
        ``model``.
    """
    for name, layer in list(lora_layers(model)):
        model.set_submodule(name, layer.merged())
    return model.requires_grad_(True)


def _names(target: str, module: str) -> bool:
    """PEFT's rule: a target is a module's full name, or the end of it from a dot on."""
    return module == target or module.endswith(f".{target}")
