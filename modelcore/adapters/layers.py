"""The adapted layers: a frozen layer with a low-rank correction beside it.

LoRA (Hu et al. 2021) adds ``scale · B A x``. DoRA (Liu et al. 2024) takes a weight apart into the length and the
direction of its rows: the correction turns the direction, a vector of magnitudes is the length. Both as PEFT
computes them.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.checks import check_number, check_whole
from modelcore.errors import InputError
from modelcore.quantization import QuantizedLinear


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers are adapted, and how.

    Attributes:
        rank: Rank r of each correction.
        alpha: The correction is scaled by alpha / r.
        dropout: Probability of dropping an input of the correction while training.
        targets: Names of modules, in full or from some dot on, as in PEFT: ``q_proj``, ``mlp.c_fc``,
            ``model.layers.0.self_attn.q_proj``. None of them means :func:`~modelcore.adapters.lora.default_targets`.
        rslora: Scale by alpha / sqrt(r) instead (rsLoRA, Kalajdzievski 2023).
        dora: Learn the length of each row of a weight apart from its direction (DoRA).

    Raises:
        InputError: If a number is out of range.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        check_whole("LoRA rank", self.rank)
        check_number("LoRA alpha", self.alpha)
        check_number("LoRA dropout", self.dropout)
        if self.alpha <= 0:
            raise InputError(f"LoRA alpha is {self.alpha}; it must be above 0")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"LoRA dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Part:
    """A module of the Hugging Face model: some rows of one of our layers.

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
    product; as in PEFT they start uniform (Kaiming), the B matrices at zero. With DoRA, part i of the product
    ``W x`` becomes ``m_i / ‖W_i + scale · B_i A_i‖ · (W_i x + scale · B_i A_i x)``, the norm taken of each row and
    held constant in the backward pass (section 4.3 of the paper); m starts as the norm, so that nothing changes.

    Attributes:
        base: The frozen layer, quantized or not.
        a: (parts · r, inputs) in fp32.
        b: One (rows of the part, r) matrix a part, in fp32.
        magnitude: With DoRA one (rows of the part,) vector a part, in fp32; none without.

    Args:
        base: The layer, (inputs → outputs).
        parts: The parts to correct, in the order of their rows.
        config: Rank, scale, dropout and kind.
    """

    def __init__(self, base: nn.Linear | QuantizedLinear, parts: list[Part], config: LoRAConfig) -> None:
        super().__init__()
        self.base, self.parts, self.config = base, parts, config
        device = next(itertools.chain(base.parameters(), base.buffers())).device
        fp32 = functools.partial(torch.zeros, dtype=torch.float32, device=device)
        self.a = nn.Parameter(fp32(len(parts) * config.rank, base.in_features))
        self.b = nn.ParameterList(fp32(part.rows, config.rank) for part in parts)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.magnitude = nn.ParameterList(self._corrected_norms() if config.dora else ())
        self.dropout = nn.Dropout(config.dropout)

    @property
    def out_features(self) -> int:
        """Width of the output, as a plain linear layer has it."""
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, inputs) to (…, outputs) in the base layer's dtype; the correction is computed in fp32."""
        return self.corrected(x, self.base(x))

    def corrected(self, x: Tensor, y: Tensor) -> Tensor:
        """The output for inputs ``x``, (…, inputs), for which the base layer's is ``y``, (…, outputs)."""
        dropped = self.dropout(x)
        h = F.linear(dropped.to(self.a.dtype), self.a * self.config.scale)  # (…, parts · r)
        product = y
        if self.config.dora:
            if self.training and self.config.dropout:  # as in PEFT, the whole change is made of the dropped input
                product = self.base(dropped)
            if self.base.bias is not None:
                product = product - self.base.bias
        slices, end = [], 0
        gains = self._gains() if self.config.dora else [None] * len(self.parts)
        for part, low, b, gain in zip(self.parts, torch.split(h, self.config.rank, dim=-1), self.b, gains, strict=True):
            if part.start > end:
                slices.append(h.new_zeros(*h.shape[:-1], part.start - end))
            end = part.start + part.rows
            change = F.linear(low, b)  # (…, rows of this part)
            if gain is not None:
                change = gain * change + (gain - 1) * product[..., part.start : end]
            slices.append(change)
        if end < self.out_features:
            slices.append(h.new_zeros(*h.shape[:-1], self.out_features - end))
        delta = torch.cat(slices, dim=-1) if len(slices) > 1 else slices[0]  # (…, outputs)
        return y + delta.to(y.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The matrices by PEFT's names; they share the parameters' memory."""
        tensors = {}
        for i, (part, a) in enumerate(zip(self.parts, torch.split(self.a.data, self.config.rank), strict=True)):
            tensors[f"{part.name}.lora_A.weight"] = a
            tensors[f"{part.name}.lora_B.weight"] = self.b[i].data
            if self.config.dora:
                tensors[f"{part.name}.lora_magnitude_vector"] = self.magnitude[i].data
        return tensors

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer with the correction in its weight, computed in fp32 and rounded once to its dtype.

        Raises:
            TypeError: If the base layer is quantized.
        """
        if isinstance(self.base, QuantizedLinear):
            raise TypeError("the base layer is quantized")
        corrected = self._corrected_rows()
        if self.config.dora:
            corrected = [gain[:, None] * rows for gain, rows in zip(self._gains(), corrected, strict=True)]
        weight = self.base.weight.float().clone()
        for part, rows in zip(self.parts, corrected, strict=True):
            weight[part.start : part.start + part.rows] = rows
        self.base.weight = nn.Parameter(weight.to(self.base.weight.dtype))
        return self.base

    def _corrected_rows(self) -> list[Tensor]:
        """``W_i + scale · B_i A_i`` of each part, (rows, inputs) fp32."""
        base = self.base
        weight = (base.dequantized() if isinstance(base, QuantizedLinear) else base.weight).float()
        return [
            weight[part.start : part.start + part.rows] + self.config.scale * (b @ a)
            for part, a, b in zip(self.parts, torch.split(self.a, self.config.rank), self.b, strict=True)
        ]

    @torch.no_grad()
    def _corrected_norms(self) -> list[Tensor]:
        """The norm of each corrected row, (rows,) fp32 a part."""
        return [torch.linalg.vector_norm(rows, dim=1) for rows in self._corrected_rows()]

    def _gains(self) -> list[Tensor]:
        """What DoRA multiplies each row of the corrected weight by, (rows,) a part; rows of zeros stay zeros."""
        tiny = torch.finfo(torch.float32).tiny
        return [m / norm.clamp_min(tiny) for m, norm in zip(self.magnitude, self._corrected_norms(), strict=True)]


class LoRAEmbedding(nn.Module):
    """A frozen embedding with a correction: token t gets ``scale · B a_t``, with a_t the t-th column of A.

    As in PEFT, A starts at zero, B normal, and there is no dropout.

    Attributes:
        base: The frozen embedding.
        a: (r, vocab_size) in fp32.
        b: (d_model, r) in fp32.

    Args:
        base: The embedding.
        parts: Its name in the Hugging Face model, as the only part.
        config: Rank and scale.

    Raises:
        InputError: If ``config`` asks for DoRA.
    """

    def __init__(self, base: nn.Embedding, parts: list[Part], config: LoRAConfig) -> None:
        super().__init__()
        if config.dora:
            raise InputError(f"DoRA of the embedding {parts[0].name} is not supported; name linear layers only")
        self.base, self.parts, self.config = base, parts, config
        fp32 = functools.partial(torch.zeros, dtype=torch.float32, device=base.weight.device)
        self.a = nn.Parameter(fp32(config.rank, base.num_embeddings))
        self.b = nn.Parameter(nn.init.normal_(fp32(base.embedding_dim, config.rank)))

    @property
    def weight(self) -> Tensor:
        """The base's weight, for those who ask for its dtype or device."""
        return self.base.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps (…) int64 to (…, d_model) in the base's dtype; the correction is computed in fp32."""
        return self.corrected(tokens, self.base(tokens))

    def corrected(self, tokens: Tensor, y: Tensor) -> Tensor:
        """The output for ``tokens``, (…), for which the base's is ``y``, (…, d_model)."""
        low = F.embedding(tokens, self.a.T)  # (…, r)
        return y + (self.config.scale * F.linear(low, self.b)).to(y.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The matrices by PEFT's names; they share the parameters' memory."""
        name = self.parts[0].name
        return {f"{name}.lora_embedding_A": self.a.data, f"{name}.lora_embedding_B": self.b.data}

    @torch.no_grad()
    def merged(self) -> nn.Embedding:
        """The base with the correction added to its weight, summed in fp32 and rounded once to its dtype."""
        weight = self.base.weight.float().clone()
        weight[: self.base.num_embeddings] += self.config.scale * (self.b @ self.a).T  # beyond them lies padding
        self.base.weight = nn.Parameter(weight.to(self.base.weight.dtype))
        return self.base


LoRALayer = LoRALinear | LoRAEmbedding
"""Every kind of adapted layer."""


def build_layer(base: nn.Module, parts: list[Part], config: LoRAConfig) -> LoRALayer:
    """The adapted form of a linear layer or an embedding."""
    if isinstance(base, nn.Embedding):
        return LoRAEmbedding(base, parts, config)
    return LoRALinear(cast("nn.Linear | QuantizedLinear", base), parts, config)
