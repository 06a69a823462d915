"""What of a tensor lies on this rank, where tensors may be cut up between ranks."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor that FSDP2 cut up (a ``DTensor``), sharing its memory; any other tensor itself.

    What is done to each number alone, such as an optimizer's step, is done to these: the same result, without the
    rules by which torch would find out that no rank needs another's rows.
    """
    part = getattr(tensor, "to_local", None)  # asks for no import of torch.distributed.tensor, which costs a second
    return tensor if part is None else part()
