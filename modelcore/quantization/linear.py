"""Linear layers whose weight is kept in few bits: the frozen base of an adapter, or a model that only generates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelcore.checks import check_choice
from modelcore.gptx import GPT
from modelcore.gptx.int8 import dequantize_int8, quantize_int8
from modelcore.quantization.allocator import give_back_what_is_free
from modelcore.quantization.int8_product import Packed, int8_linear, pack, packed_linear, packs, unpack
from modelcore.quantization.nf4 import dequantize_nf4, quantize_nf4

Quantization = Literal["none", "int8", "nf4"]
"""How the linear layers of a frozen base are kept."""


class QuantizedLinear(nn.Module, ABC):
    """A frozen linear layer in few bits.

    The gradient of its input is the exact one of the rounded weight. Neither pass leaves the full weight behind: where
    gradients are wanted it is made when a layer runs and dropped when it has run, and made again for the backward pass.

    Args:
        linear: The layer to round; it is left as it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False) if linear.bias is not None else None

    @abstractmethod
    def dequantized(self) -> Tensor:
        """The weight that the layer stands for, (outputs, inputs) fp32, made anew at each call."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, inputs) to (…, outputs) in the dtype of ``x``."""
        if not torch.is_grad_enabled():
            return self._inferred(x)
        y: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def _inferred(self, x: Tensor) -> Tensor:
        """The same where no gradient is wanted."""
        return F.linear(x, self.dequantized().to(x.dtype), self.bias)


class Int8Linear(QuantizedLinear):
    """A linear layer with eight bits a weight: :mod:`modelcore.gptx.int8`.

    Without gradients its product is the fast one of :mod:`modelcore.quantization.int8_product`. Where that wants the
    weight in another order, the first product puts it in order, and it is held so and not twice.
    """

    scale: Tensor
    _loose: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        # Some rows at a time: on the way they are as long as fp32, thrice.
        values, scale = zip(*(quantize_int8(rows) for rows in torch.split(_weight(linear), 1024)), strict=True)
        self.register_buffer("_loose", torch.cat(values))  # (outputs, inputs) int8, or None while packed
        self.register_buffer("scale", torch.cat(scale))  # (outputs, 1)
        self._packed: Packed | None = None

    @property
    def values(self) -> Tensor:
        """The whole numbers, (outputs, inputs) int8; made anew at each call once a fast product has packed them."""
        loose = self._loose
        return unpack(self._packed) if loose is None else loose

    def dequantized(self) -> Tensor:
        """The weight that the layer stands for, (outputs, inputs) fp32."""
        if self._packed is not None:  # it is tuned, and will be asked for this twice a step
            self._unpack()
        return dequantize_int8(self.values, self.scale)

    def _inferred(self, x: Tensor) -> Tensor:
        packed = self._packed  # read once: another thread may be packing
        if packed is None:
            values = self.values
            if not packs(values):
                return int8_linear(x, values, self.scale, self.bias)
            packed = self._packed = pack(values, self.scale)
            self._loose = None
            del values
            give_back_what_is_free()
        return packed_linear(x, packed, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved as tensors: elsewhere the packed weight means nothing."""
        self._unpack()
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._unpack()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._unpack()
        super()._load_from_state_dict(*arguments)

    def __getstate__(self) -> dict[str, Any]:
        """For copies."""
        self._unpack()
        return self.__dict__

    def _unpack(self) -> None:
        self._loose, self._packed = self.values, None


class NF4Linear(QuantizedLinear):
    """A linear layer with four bits a weight: :mod:`modelcore.quantization.nf4`."""

    packed: Tensor
    largest: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        packed, largest = quantize_nf4(_weight(linear))
        self.register_buffer("packed", packed)  # (blocks, 32) uint8
        self.register_buffer("largest", largest)  # (blocks, 1)

    def dequantized(self) -> Tensor:
        """The weight that the layer stands for, (outputs, inputs) fp32."""
        return dequantize_nf4(self.packed, self.largest, torch.Size((self.out_features, self.in_features)))


def quantize_model(model: GPT, kind: Quantization, *, head: bool = False) -> GPT:
    """Replaces the linear layers of every block by quantized ones, in place, one after the other, and freezes them.

    Embeddings, norms and biases stay as they are: they are looked up, or small. So does the head, unless asked for.

    Args:
        model: A plain model, still without adapters. Loaded with ``load_model(…, apart=True)``, no more than one of
            its full weights is in memory at a time.
        kind: What to keep the layers in; ``none`` leaves them.
        head: Whether the head is quantized too. Its error is added to every logit; but a token reads all of it, and
            in a small model it is a third of what a token reads. The embedding that a head is tied to stays as it is.

    Returns:
        ``model``.

    Raises:
        InputError: If ``kind`` is none of the known ones.
    """
    kinds: dict[str, type[QuantizedLinear] | None] = {"none": None, "int8": Int8Linear, "nf4": NF4Linear}
    check_choice("quantization", kind, kinds)
    layer = kinds[kind]
    if layer is not None:
        linear = {name: module for name, module in model.blocks.named_modules() if isinstance(module, nn.Linear)}
        while linear:  # the full weight of each is let go before the next is read
            name, module = linear.popitem()
            model.blocks.set_submodule(name, layer(module))
            del module
        if head and isinstance(model.head, nn.Linear):
            model.set_submodule("head", layer(model.head))
    return model


def _weight(linear: nn.Linear) -> Tensor:
    """The rows that count: a padded head has more."""
    return linear.weight.detach()[: linear.out_features]


class _FrozenProduct(torch.autograd.Function):
    """``x Wᵀ`` for a weight that gets no gradient and is not kept between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantized().to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output @ ctx.layer.dequantized().to(grad_output.dtype), None
