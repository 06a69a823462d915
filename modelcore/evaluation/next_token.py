"""How probable a model finds the tokens that came, without ever holding all the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from modelcore.gptx import GPT

_LOGITS_AT_ONCE = 1 << 22  # 16 MiB in fp32: the head's output is made in pieces of this size


def score_next(model: GPT, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compares what the model expects after some states with what came.

    Args:
        model: The model that made the states.
        hidden: (n, d_model), from :meth:`GPT.hidden`.
        targets: (n,) int64, at least one: the token that followed each.

    Returns:
        -ln p of the targets, (n,) fp32; whether each was the most likely token, (n,) boolean; and the probability
        of the most likely token, (n,) fp32.
    """
    losses, hits, confidences = [], [], []
    rows = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    for first in range(0, len(targets), rows):
        target = targets[first : first + rows]
        logits = model.head(hidden[first : first + rows]).float()  # (rows, V)
        total = logits.logsumexp(dim=-1)  # (rows,)
        highest, likeliest = logits.max(dim=-1)
        losses.append(total - logits.gather(1, target[:, None])[:, 0])
        hits.append(likeliest == target)
        confidences.append((highest - total).exp())
    return torch.cat(losses), torch.cat(hits), torch.cat(confidences)
