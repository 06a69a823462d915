"""What training computes in: the dtype of its products, and the kernels that are fastest on the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from modelcore.gptx.short_attention import SHORT

Precision = Literal["auto", "fp32", "bf16"]


def autocast(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What makes the context that a forward pass runs in: bf16 autocast, or none."""
    bf16 = computes_in_bf16(precision, device)
    return (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else contextlib.nullcontext


def computes_in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether :func:`autocast` makes products bf16: by ``auto`` where the device multiplies bf16 faster than fp32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


@contextlib.contextmanager
def fast_kernels(precision: Precision, device: torch.device, sequence_length: int) -> Iterator[None]:
    """Chooses the fastest kernels for a CPU while the block runs; does nothing on other devices.

    With ``auto``, what stays fp32 of matrix products (all of them, without AVX512_BF16) goes through oneDNN. On a CPU
    with AMX these round their inputs to bf16 and sum in fp32; on others they stay fp32 and use AVX-512 on every make of
    CPU, where the default (MKL) leaves half of the speed on AMD's. ``fp32`` keeps the default.
    """
    if device.type != "cpu":
        yield
        return
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    attention = sdpa_kernel(SDPBackend.MATH) if sequence_length <= SHORT else contextlib.nullcontext()
    try:
        if precision == "auto":
            products.fp32_precision = "bf16"
        with attention:
            yield
    finally:
        products.fp32_precision = before
