"""Frozen linear layers in few bits: to tune an adapter in little memory, or to generate from fewer bytes."""

from modelcore.quantization.linear import (
    Int8Linear,
    NF4Linear,
    Quantization,
    QuantizedLinear,
    quantize_model,
)

__all__ = ["Int8Linear", "NF4Linear", "Quantization", "QuantizedLinear", "quantize_model"]
