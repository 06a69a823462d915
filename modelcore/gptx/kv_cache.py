"""The key-value cache: what attention has already computed for earlier positions."""

from __future__ import annotations

import torch
from torch import Tensor

from modelcore.errors import InputError
from modelcore.gptx.config import GPTConfig
from modelcore.gptx.kv_storage import KVStorage


class KVCache:
    """Keys and values of every layer, allocated once.

    Rows of a batch may hold prompts of unequal length: prompts are padded on the right, each row keeps its own
    length, and the next token of a row overwrites its first padding slot. A query at position p sees
    the slots 0 … p, so padding is never attended to by a token that counts.

    A model with a sliding window gets a ring: position p lies in slot p modulo the number of slots, and a new token
    takes the place of one that no later token sees. The ring has ``rewind`` slots more than the window, so that as
    many tokens of a row, a rejected draft for example, can be taken back. A pass of at most ``rewind`` + 1 tokens
    writes to the ring and reads from it. A longer one, a chunk of a prompt, reads its own keys beside the ring's;
    they are held until :meth:`advance` says which tokens count, and the ring takes the newest of these.

    Attributes:
        lengths: Valid tokens of each row, (batch,) int64.
        slots: Slots of a row: ``max_length``, or less in a ring.
        keys: One :class:`~modelcore.gptx.kv_storage.KVStorage` a layer; values likewise.

    Args:
        config: The model's.
        batch_size: Rows.
        max_length: Most tokens of a row, the context at most.
        dtype: Of what is stored: a floating-point type, or ``torch.int8``; :class:`KVStorage` states its error.
        device: Where the model is.
        rewind: Tokens that :meth:`rewind` can surely take back; only a ring asks.

    Raises:
        InputError: If ``max_length`` does not fit the context, the dtype is neither, or ``rewind`` is negative.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_length: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rewind: int = 16,
    ) -> None:
        self.max_length = config.context_length if max_length is None else max_length
        if not 1 <= self.max_length <= config.context_length:
            raise InputError(
                f"a cache of {self.max_length} tokens does not fit a model whose context is "
                f"{config.context_length}; choose 1 to {config.context_length}"
            )
        if not (dtype.is_floating_point or dtype == torch.int8):
            raise InputError(f"a cache cannot be kept in {dtype}; choose a floating-point type or torch.int8")
        if rewind < 0:
            raise InputError(f"rewind is {rewind}; it must be a number of tokens, 0 or more")
        window = self.max_length if config.sliding_window is None else config.sliding_window
        self.slots = min(self.max_length, window + rewind)
        self._spare = self.slots - window + 1  # newest tokens that can be overwritten or taken back in a full ring
        shape = (batch_size, config.n_kv_heads, self.slots, config.head_dim)
        self.keys = [KVStorage(shape, dtype, device) for _ in range(config.n_layers)]
        self.values = [KVStorage(shape, dtype, device) for _ in range(config.n_layers)]
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self._host_lengths = [0] * batch_size  # the same, without asking the device
        self._written = [0] * batch_size  # positions of each row that slots have been written for
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, what the ring is yet to take

    @property
    def longest(self) -> int:
        """Tokens of the longest row, known on the host without asking the device."""
        return max(self._host_lengths)

    @property
    def even(self) -> bool:
        """Whether all rows have the same number of tokens."""
        return min(self._host_lengths) == self.longest

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        return sum(storage.nbytes for storage in (*self.keys, *self.values))

    def positions(self, time: int) -> Tensor:
        """Positions that the next ``time`` tokens of each row take, (batch, time) int64. Asked once a pass.

        Raises:
            InputError: If a row would grow past the cache.
        """
        if self.longest + time > self.max_length:
            raise InputError(
                f"{self.longest} cached and {time} new tokens exceed the {self.max_length} "
                "the cache holds; shorten the prompt or ask for fewer tokens"
            )
        if self._in_place(time):
            self._written = [max(w, n + time) for w, n in zip(self._written, self._host_lengths, strict=True)]
        return self.lengths[:, None] + torch.arange(time, device=self.lengths.device)

    def key_positions(self, time: int) -> Tensor:
        """Positions of the keys that :meth:`write` returns in a pass of ``time`` tokens, (batch or 1, keys) int64.

        A slot that holds none gets ``max_length``, which comes after every query.
        """
        end, device = self.longest + time, self.lengths.device
        if end <= self.slots:
            return torch.arange(end, device=device)[None]
        if self._in_place(time):
            return self._positions_in_slots(self.lengths + time, self.slots)
        held = self._positions_in_slots(self.lengths, min(self.longest, self.slots))
        return torch.cat((held, self.lengths[:, None] + torch.arange(time, device=device)), dim=1)

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values and returns all of that layer's that a new token may see.

        Args:
            layer: Index of the block.
            keys: (batch, n_kv_heads, time, head_dim).
            values: Like ``keys``.
            positions: (batch, time), from :meth:`positions`.

        Returns:
            Keys and values in the dtype given, (batch, n_kv_heads, keys, head_dim), at :meth:`key_positions`.
        """
        time, dtype, storages = keys.shape[2], keys.dtype, (self.keys[layer], self.values[layer])
        end = self.longest + time
        if self._in_place(time):
            self._pending.pop(layer, None)
            in_a_row = end <= self.slots and self.even
            slots = positions if end <= self.slots else positions % self.slots
            for storage, new in zip(storages, (keys, values), strict=True):
                if in_a_row:
                    storage.write_in_a_row(self.longest, new)
                else:
                    storage.write(slots, new)
            all_keys, all_values = (storage.read(min(end, self.slots), dtype) for storage in storages)
            return all_keys, all_values
        self._pending[layer] = (keys, values)
        all_keys, all_values = (
            torch.cat((storage.read(min(self.longest, self.slots), dtype), storage.rounded(new)), dim=2)
            for storage, new in zip(storages, (keys, values), strict=True)
        )
        return all_keys, all_values

    def advance(self, time: int | list[int]) -> None:
        """Counts new tokens as valid: the same number for every row, or one number a row."""
        counts = [time] * len(self._host_lengths) if isinstance(time, int) else time
        added: int | Tensor = time if isinstance(time, int) else torch.tensor(time, device=self.lengths.device)
        if self._pending:
            self._take_pending(counts)
        self.lengths = self.lengths + added
        self._host_lengths = [n + count for n, count in zip(self._host_lengths, counts, strict=True)]

    def rewind(self, lengths: list[int]) -> None:
        """Takes back the newest tokens of each row: what a row holds beyond its new length is forgotten.

        Args:
            lengths: The new length of each row, none above what the row holds.

        Raises:
            ValueError: If a length is negative or above its row's.
            InputError: If a ring has overwritten tokens that the shorter row needs; nothing is changed.
        """
        if not all(0 <= new <= held for new, held in zip(lengths, self._host_lengths, strict=True)):
            raise ValueError(f"rows of {self._host_lengths} tokens cannot be rewound to {lengths}")
        for new, written in zip(lengths, self._written, strict=True):
            if written > self.slots and written - new > self._spare:
                raise InputError(
                    f"a row written to token {written} cannot be rewound to {new}: the ring for the sliding window has "
                    f"room to take {self._spare} back; make the cache with a larger rewind"
                )
        self.lengths = torch.tensor(lengths, device=self.lengths.device)
        self._host_lengths = list(lengths)

    def keep(self, rows: list[int]) -> None:
        """Keeps these rows alone, in this order: texts that have ended leave the batch."""
        index = torch.tensor(rows, device=self.lengths.device)
        for storage in (*self.keys, *self.values):
            storage.keep(index)
        self.lengths = self.lengths[index]
        self._host_lengths = [self._host_lengths[row] for row in rows]
        self._written = [self._written[row] for row in rows]
        self._pending = {}

    def _in_place(self, time: int) -> bool:
        """Whether ``time`` tokens can be written before they are read: none of them overwrites what another sees."""
        return self.longest + time <= self.slots or time <= self._spare

    def _positions_in_slots(self, lengths: Tensor, n_slots: int) -> Tensor:
        """The position in each of the first ``n_slots`` slots of rows of ``lengths`` tokens, (batch, n_slots).

        Slots written for a token that was taken back claim an older position, one that no query sees.
        """
        newest = lengths[:, None] - 1
        positions = newest - (newest - torch.arange(n_slots, device=lengths.device)) % self.slots
        return positions.masked_fill(positions < 0, self.max_length)

    def _take_pending(self, counts: list[int]) -> None:
        """Moves the newest of each row's valid tokens from the last pass to the ring."""
        device, pending, self._pending = self.lengths.device, self._pending, {}
        row_numbers = [row for row, count in enumerate(counts) if count]
        if not row_numbers:
            return
        rows = torch.tensor(row_numbers, device=device)
        # The last tokens of each row. A row that has fewer writes its first one again.
        n_tokens = min(pending[0][0].shape[2], self.slots)
        first = torch.tensor([counts[row] for row in row_numbers], device=device)[:, None] - n_tokens
        token = (first + torch.arange(n_tokens, device=device)).clamp(min=0)  # (rows, n_tokens)
        slots = (self.lengths[rows, None] + token) % self.slots
        for layer, keys_and_values in pending.items():
            for storage, new in zip((self.keys[layer], self.values[layer]), keys_and_values, strict=True):
                index = token[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
                storage.write(slots, new[rows].gather(2, index), rows)
        ends = [n + count for n, count in zip(self._host_lengths, counts, strict=True)]
        self._written = [max(pair) for pair in zip(self._written, ends, strict=True)]
