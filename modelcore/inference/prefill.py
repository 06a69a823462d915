"""Reading prompts into the cache, in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelcore.gptx import GPT, KVCache

MAX_TOKENS_AT_ONCE = 2048
"""Most tokens of all rows in one pass: activations and attention masks grow with it, the cache does not."""


def read_prompts(model: GPT, prompts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Reads prompts of any lengths into an empty cache.

    Args:
        model: The model, in evaluation mode.
        prompts: Ids of each prompt, at least one each.
        cache: With a row a prompt; afterwards each row holds its prompt.

    Returns:
        The state at each prompt's last token, (batch, d_model): what the head turns into the next token's logits.
    """
    lengths = [len(prompt) for prompt in prompts]
    tokens = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    tokens = tokens.to(model.device)
    last = torch.empty(len(prompts), model.config.d_model, dtype=model.embedding.weight.dtype, device=model.device)
    size = max(1, MAX_TOKENS_AT_ONCE // len(prompts))
    for start in range(0, max(lengths), size):
        piece = tokens[:, start : start + size]
        hidden = model.hidden(piece, cache)  # (B, piece, d_model)
        # A row that has ended reads padding, which does not count.
        cache.advance([min(max(length - start, 0), piece.shape[1]) for length in lengths])
        ending = [row for row, length in enumerate(lengths) if start < length <= start + piece.shape[1]]
        last[ending] = hidden[ending, [lengths[row] - start - 1 for row in ending]]
    return last
