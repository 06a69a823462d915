"""Frozen linear layers in few bits: the base of an adapter that is to be tuned in little memory."""

from modelcore.quantization.linear import (
    Int8Linear,
    NF4Linear,
    Quantization,
    QuantizedLinear,
    quantize_model,
)

__all__ = ["Int8Linear", "NF4Linear", "Quantization", "QuantizedLinear", "quantize_model"]
