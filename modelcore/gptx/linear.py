"""The linear layer, with a faster product for the few rows that decoding gives it on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MOST_ROWS = 64  # from there on both libraries are bound by arithmetic, and are as fast
_FEWEST_WEIGHTS = 2**18  # below, finding oneDNN's kernel takes longer than the product


class Linear(nn.Linear):
    """``x Wᵀ + b``.

    Intel's MKL, with which torch multiplies fp32 matrices on an x86 CPU, reads the weights for a single row on one core
    alone, and for a few rows does little better; the memory could give twice as much. oneDNN, which torch carries too,
    and whose products ``torch.compile`` calls on a CPU, uses all cores. Both are exact to fp32's rounding of sums.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, inputs) to (…, outputs)."""
        if _is_for_onednn(x, self.weight):
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return product
        return super().forward(x)


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= _FEWEST_WEIGHTS
        and 0 < x.numel() <= _MOST_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and _HAS_BOTH
    )


_HAS_BOTH = (
    torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
