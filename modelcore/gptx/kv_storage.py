"""Where the cache keeps the keys or the values of one layer: as they are, rounded to a half type, or in int8."""

from __future__ import annotations

import torch
from torch import Tensor

from modelcore.gptx.int8 import dequantize_int8, quantize_int8


class KVStorage:
    """A fixed number of slots for each row, each with one vector a key head.

    In int8 a vector is stored as whole numbers of -127 … 127 and one fp32 scale, max|x| / 127, for each token and head.
    What is read back is off by half a scale at most: max|x| / 254 of its own token and head. The logits of a random
    model with strong attention move by 2 % of their spread (root mean square); the loss of a trained llama-nano rose by
    0.0001 nats a token.

    Args:
        shape: (batch, n_kv_heads, slots, head_dim).
        dtype: Of what is stored: a floating-point type, or ``torch.int8``.
        device: Where.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device | str) -> None:
        self.data = torch.zeros(shape, dtype=dtype, device=device)
        self.scale = torch.zeros(*shape[:3], 1, device=device) if dtype == torch.int8 else None

    @property
    def nbytes(self) -> int:
        """Memory of the slots, in bytes."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def write(self, slots: Tensor, vectors: Tensor, rows: Tensor | None = None) -> None:
        """Stores vectors in slots.

        Args:
            slots: (rows, time). A slot named twice in a row must be given the same vector both times.
            vectors: (rows, n_kv_heads, time, head_dim).
            rows: Which rows they are for; None: all.
        """
        for stored, new in self._parts(vectors):
            if rows is None:
                stored.scatter_(2, slots.view(len(slots), 1, -1, 1).expand_as(new), new)
            else:
                stored[rows[:, None], :, slots] = new.transpose(1, 2)

    def write_in_a_row(self, first: int, vectors: Tensor) -> None:
        """The same for slots that follow one another, from ``first`` on in every row: with less to compute."""
        for stored, new in self._parts(vectors):
            stored.narrow(2, first, new.shape[2]).copy_(new)

    def read(self, n_slots: int, dtype: torch.dtype) -> Tensor:
        """The vectors in the first ``n_slots`` slots, (batch, n_kv_heads, n_slots, head_dim), as ``dtype``."""
        if self.scale is None:
            return self.data.narrow(2, 0, n_slots).to(dtype)
        return dequantize_int8(self.data[:, :, :n_slots], self.scale[:, :, :n_slots]).to(dtype)

    def rounded(self, vectors: Tensor) -> Tensor:
        """``vectors`` as they would be read back, without storing them."""
        if self.scale is None:
            return vectors.to(self.data.dtype).to(vectors.dtype)
        return dequantize_int8(*quantize_int8(vectors)).to(vectors.dtype)

    def _parts(self, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What is stored of vectors, each beside where."""
        if self.scale is None:
            return [(self.data, vectors.to(self.data.dtype))]
        return list(zip((self.data, self.scale), quantize_int8(vectors), strict=True))

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows alone, in this order."""
        self.data = self.data[rows]
        self.scale = None if self.scale is None else self.scale[rows]
