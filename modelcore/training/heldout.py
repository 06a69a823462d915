"""Bits per byte on held-out text, cheap enough to be asked for while training."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch

from modelcore.data.loader import IGNORED
from modelcore.data.shards import TokenSplit
from modelcore.errors import InputError
from modelcore.gptx import GPT, evaluating
from modelcore.training.loss import summed_loss
from modelcore.training.parallel import Ranks


class Heldout:
    """A fixed part of a held-out split: non-overlapping windows, spread evenly over it.

    Each window starts without context, so the figure is a little above what a sliding window gives.

    Args:
        split: The held-out tokens.
        sequence_length: Tokens a window.
        max_tokens: Most tokens that are predicted; at least one window is.

    Raises:
        InputError: If the split is shorter than two tokens.
    """

    def __init__(self, split: TokenSplit, sequence_length: int, max_tokens: int) -> None:
        if split.n_tokens < 2:
            raise InputError(f"the held-out text has {split.n_tokens} tokens; at least 2 are needed to evaluate on")
        length = min(sequence_length, split.n_tokens - 1)
        windows = (split.n_tokens - 1) // length
        chosen = np.linspace(0, windows - 1, num=max(1, min(windows, max_tokens // length))).astype(np.int64)
        self.tokens = torch.from_numpy(np.stack([split.window(int(i) * length, length + 1) for i in chosen]))
        self.bits_per_nat_and_byte = split.n_tokens / split.n_bytes / math.log(2)

    @torch.no_grad()
    def bits_per_byte(
        self,
        model: GPT,
        batch_size: int,
        cast: Callable[[], AbstractContextManager[object]],
        ranks: Ranks | None = None,
    ) -> float:
        """The model's loss on the windows, in bits a byte of UTF-8 text by the split's mean bytes a token.

        Args:
            model: The model; it is left in the mode it was in.
            batch_size: Windows at once.
            cast: Makes the context in which the model runs.
            ranks: The processes that share the windows, all of which must call; None: this one alone.
        """
        ranks = ranks or Ranks()
        total = torch.zeros((), device=model.device)
        own = self.tokens[ranks.rank :: ranks.size]
        most = -(-self.tokens.shape[0] // ranks.size)
        with evaluating(model):
            for start in range(0, most, batch_size):
                piece = own[start : start + batch_size].to(model.device)
                if not piece.shape[0]:  # ranks with shards of a model run it together, so this one runs along
                    piece = torch.full_like(self.tokens[:1], IGNORED, device=model.device)
                with cast():
                    total += summed_loss(model.hidden(piece[:, :-1].clamp_min(0)), model.head, piece[:, 1:])
        return (
            ranks.sum(total).item() / (self.tokens.shape[0] * (self.tokens.shape[1] - 1)) * self.bits_per_nat_and_byte
        )
