"""The key-value cache: what attention has already computed for earlier positions."""

from __future__ import annotations

import torch
from torch import Tensor

from modelcore.errors import InputError
from modelcore.gptx.config import GPTConfig


class KVCache:
    """Keys and values of every layer, allocated once.

    Rows of a batch may hold prompts of unequal length: prompts are padded on the right, each row keeps its own
    length, and the next token of a row overwrites its first padding slot. A query at position p sees
    the slots 0 … p, so padding is never attended to by a token that counts.

    Attributes:
        lengths: Valid tokens of each row, (batch,) int64.
        keys: One (batch, n_kv_heads, max_length, head_dim) tensor a layer; values likewise.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_length: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_length = config.context_length if max_length is None else max_length
        if not 1 <= self.max_length <= config.context_length:
            raise InputError(
                f"a cache of {self.max_length} tokens does not fit a model whose context is "
                f"{config.context_length}; choose 1 to {config.context_length}"
            )
        shape = (batch_size, config.n_kv_heads, self.max_length, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.n_layers)]
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self._longest = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest row, known on the host without asking the device."""
        return self._longest

    def positions(self, time: int) -> Tensor:
        """Positions that the next ``time`` tokens of each row take, (batch, time) int64.

        Raises:
            InputError: If a row would grow past the cache.
        """
        if self._longest + time > self.max_length:
            raise InputError(
                f"{self._longest} cached and {time} new tokens exceed the {self.max_length} "
                "the cache holds; shorten the prompt or ask for fewer tokens"
            )
        return self.lengths[:, None] + torch.arange(time, device=self.lengths.device)

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values and returns all of that layer's so far.

        Args:
            layer: Index of the block.
            keys: (batch, n_kv_heads, time, head_dim).
            values: Like ``keys``.
            positions: (batch, time), from :meth:`positions`.

        Returns:
            Keys and values, (batch, n_kv_heads, longest + time, head_dim).
        """
        index = positions[:, None, :, None].expand_as(keys)
        self.keys[layer].scatter_(2, index, keys.to(self.keys[layer].dtype))
        self.values[layer].scatter_(2, index, values.to(self.values[layer].dtype))
        end = self._longest + keys.shape[2]
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, time: int | list[int]) -> None:
        """Counts new tokens as valid: the same number for every row, or one number a row."""
        if isinstance(time, int):
            self.lengths += time
            self._longest += time
        else:
            self.lengths += torch.tensor(time, device=self.lengths.device)
            self._longest = int(self.lengths.max())

    def rewind(self, lengths: list[int]) -> None:
        """Takes back the newest tokens of each row: what a row holds beyond its new length is forgotten.

        Args:
            lengths: The new length of each row, none above what the row holds.

        Raises:
            ValueError: If a length is negative or above its row's.
        """
        if not all(0 <= new <= held for new, held in zip(lengths, self.lengths.tolist(), strict=True)):
            raise ValueError(f"rows of {self.lengths.tolist()} tokens cannot be rewound to {lengths}")
        self.lengths = torch.tensor(lengths, device=self.lengths.device)
        self._longest = max(lengths)

    def keep(self, rows: list[int]) -> None:
        """Keeps these rows alone, in this order: texts that have ended leave the batch."""
        index = torch.tensor(rows, device=self.lengths.device)
        self.keys = [keys[index] for keys in self.keys]
        self.values = [values[index] for values in self.values]
        self.lengths = self.lengths[index]
        self._longest = int(self.lengths.max())
