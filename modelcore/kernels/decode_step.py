"""One token for every row of a batch, from the embedding to the choice of the next token, without the host.

Everything the step reads and writes lies in buffers that stay where they are: token ids and lengths too. So the
launches can be captured once in a CUDA graph and replayed for every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from modelcore.gptx import GPTConfig, KVCache
from modelcore.inference.samplers import SamplingConfig
from modelcore.kernels import attention, products, sampling
from modelcore.kernels.dependent_launch import is_supported
from modelcore.kernels.weights import DecodeWeights, LinearWeights, NormWeights

MOST_ROWS = 64
"""Beyond, the products are no longer a matter of reading the weights, and the ordinary modules do as well."""

_PIECE = 1024  # tokens of the vocabulary that a program scores
_STAGES = 4  # pieces of a product of several rows that are on their way
_SHARED_MEMORY = 160 * 1024  # most bytes that they may take, where the device has so many
_FEWEST_KEYS = 128  # of a share of attention, where there are several


@dataclass(frozen=True)
class Tile:
    """How a product is cut: outputs (or pairs of them) a program, inputs at a time, warps, pieces on their way."""

    n: int
    k: int
    warps: int
    stages: int = 1


class DecodeStep:
    """The step's buffers and its launches.

    Attributes:
        tokens: (rows,) int64, each row's newest token: read first, and replaced last.
        lengths: (rows,) int32, how many tokens each row holds before that one; one more afterwards.
        logits: (rows, vocab_size), of the newest pass.
        uniform: (rows, vocab_size) float64 in [0, 1), the random numbers of the next choice.
        cache: Keys and values, of ``slots`` tokens a row.

    Args:
        config: The model's shape.
        rows: Texts at a time, at most :data:`MOST_ROWS`.
        slots: Most tokens of a row.
        weights: The model's, for their dtype and device; they are not kept.
        tiles: Instead of the usual ones, by the product's name.
        early: Whether kernels may start before the ones before them end; None: where the device can.
    """

    def __init__(
        self,
        config: GPTConfig,
        rows: int,
        slots: int,
        weights: DecodeWeights,
        tiles: Mapping[str, Tile] | None = None,
        early: bool | None = None,
    ) -> None:
        dtype, device = weights.embedding.dtype, weights.embedding.device
        self.config, self.rows = config, rows
        self.cache = KVCache(config, rows, slots, dtype=dtype, device=device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        self.logits = torch.empty(rows, config.vocab_size, dtype=dtype, device=device)
        self.uniform = torch.full((rows, config.vocab_size), 0.5, dtype=torch.float64, device=device)
        self._shared_memory = _SHARED_MEMORY
        if device.type == "cuda":
            has = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 2**16)
            self._shared_memory = min(_SHARED_MEMORY, has * 3 // 4)
        self._early = is_supported(device) if early is None else early
        # Triton's interpreter knows no such option.
        self._options: dict[str, Any] = {"launch_pdl": True} if self._early else {}
        self._tiles = tiles or {}

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self._x, self._normed, self._y = (empty(rows, config.d_model) for _ in range(3))
        self._queries, self._wide = empty(rows, config.d_model), empty(rows, config.d_ff)
        # Attention: enough programs to occupy the device, each with a share of the keys.
        kv_heads, group = config.n_kv_heads, config.n_heads // config.n_kv_heads
        splits = triton.next_power_of_2(max(1, min(16, 132 // (rows * kv_heads))))
        keys = min(_FEWEST_KEYS, 2**14 // (triton.next_power_of_2(config.head_dim) * dtype.itemsize))  # at a time
        self._attention = self._tiles.get("attention", Tile(splits, keys, 4))
        self._block_g = 1 if group == 1 else max(16, triton.next_power_of_2(group))
        shares = (rows, kv_heads, self._attention.n, self._block_g)
        self._sums = empty(*shares, config.head_dim, dtype=torch.float32)
        self._peaks, self._weights = empty(*shares, dtype=torch.float32), empty(*shares, dtype=torch.float32)
        self._done = torch.zeros(rows * kv_heads, dtype=torch.int32, device=device)
        # Choice of the token.
        pieces = triton.cdiv(config.vocab_size, _PIECE)
        self._inverse_temperature, self._top_p, self._min_p = (empty(rows, dtype=torch.float32) for _ in range(3))
        self._top_k, self._greedy = empty(rows, dtype=torch.int32), empty(rows, dtype=torch.int32)
        self._rank, self._index = empty(rows, dtype=torch.long), empty(rows, dtype=torch.int32)
        self._peak = empty(rows, dtype=torch.float32)
        self._best = empty(rows, pieces, dtype=torch.float64)
        self._best_token = empty(rows, pieces, dtype=torch.int32)

    @staticmethod
    def can_choose(samplings: Sequence[SamplingConfig]) -> bool:
        """Whether :meth:`launch` knows the rules of all rows; where not, its choice is to be replaced."""
        return not any(s.reads_history or s.logit_bias or s.typical_p < 1.0 for s in samplings)

    def set_rules(self, samplings: Sequence[SamplingConfig]) -> None:
        """How each row's token is chosen."""
        rules = (
            (self._inverse_temperature, [1.0 / (s.temperature or 1.0) for s in samplings]),
            (self._greedy, [s.temperature == 0.0 for s in samplings]),
            (self._top_k, [0 if s.temperature == 0.0 else min(s.top_k, self.config.vocab_size) for s in samplings]),
            (self._top_p, [1.0 if s.temperature == 0.0 else s.top_p for s in samplings]),
            (self._min_p, [s.min_p for s in samplings]),
        )
        for tensor, values in rules:
            tensor.copy_(torch.tensor(values, dtype=tensor.dtype))

    def launch(self, weights: DecodeWeights) -> None:
        """Launches the whole step; tokens and lengths are then those of the next.

        Args:
            weights: The model's.
        """
        config, early = self.config, {"early": self._early, **self._options}
        whole = triton.next_power_of_2(config.d_model)
        products.embed[(self.rows,)](
            self.tokens, self.lengths, weights.embedding, weights.positions, self._x, config.vocab_size,
            width=config.d_model, whole_k=whole, **early,
        )  # fmt: skip
        for layer, block in enumerate(weights.blocks):
            self._project_heads(self._x, block.qkv, block.attention_norm, weights, layer)
            self._attend(layer)
            self._linear("out", self._y, block.out, None, self._x, "add")
            self._linear("up", self._x, block.up, block.feedforward_norm, self._wide, config.feedforward)
            self._linear("down", self._wide, block.down, None, self._x, "add")
        self._linear("head", self._x, weights.head, weights.norm, self.logits, "none")
        self._choose()

    def _linear(
        self, name: str, x: Tensor, linear: LinearWeights, norm: NormWeights | None, y: Tensor, after: str
    ) -> None:
        """``y`` = (``y`` +) ``linear(norm(x))`` and what comes ``after``."""
        tile = self._tile(name, linear)
        x, given, kind = self._normalized(x, norm)
        n_outputs, n_inputs = y.shape[1], x.shape[1]
        products.linear[(triton.cdiv(n_outputs, tile.n),)](
            x, linear.weight, linear.scale, linear.bias, given and given.weight, given and given.bias, y,
            self.rows, n_outputs, self.config.norm_eps,
            width=n_inputs, after=after, norm=kind, block_n=tile.n, **self._product(tile, n_inputs),
        )  # fmt: skip

    def _project_heads(
        self, x: Tensor, linear: LinearWeights, norm: NormWeights, weights: DecodeWeights, layer: int
    ) -> None:
        config, tile = self.config, self._tile("qkv", linear)
        x, given, kind = self._normalized(x, norm)
        products.project_heads[(triton.cdiv(sum(config.qkv_sizes) // 2, tile.n),)](
            x, linear.weight, linear.scale, linear.bias, given and given.weight, given and given.bias,
            weights.cos, weights.sin, self.lengths, self._queries,
            self.cache.keys[layer].data, self.cache.values[layer].data, self.rows, self.cache.slots, config.norm_eps,
            width=config.d_model, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads, head_dim=config.head_dim,
            norm=kind, block_n=tile.n, **self._product(tile, config.d_model),
        )  # fmt: skip

    def _normalized(self, x: Tensor, norm: NormWeights | None) -> tuple[Tensor, NormWeights | None, str]:
        """What a product reads: x and the norm that it is to apply itself, for one row; else x, normalized."""
        if norm is None:
            return x, None, "none"
        if self.rows == 1:
            return x, norm, self.config.norm
        products.normalize[(self.rows,)](
            x, norm.weight, norm.bias, self._normed, self.config.norm_eps, width=self.config.d_model,
            whole_k=triton.next_power_of_2(self.config.d_model), norm=self.config.norm,
            early=self._early, **self._options,
        )  # fmt: skip
        return self._normed, None, "none"

    def _product(self, tile: Tile, n_inputs: int) -> dict[str, Any]:
        """What every kernel with a product is told."""
        return {
            "block_m": self._block_m(),
            "block_k": tile.k,
            "whole_k": triton.next_power_of_2(n_inputs),
            "stages": tile.stages,
            "early": self._early,
            "num_warps": tile.warps,
            **self._options,
        }

    def _tile(self, name: str, linear: LinearWeights) -> Tile:
        """The tile of a product: the fastest of those tried on an H100 with a model of 1.1 billion parameters."""
        if name in self._tiles:
            return self._tiles[name]
        n_outputs, n_inputs = linear.weight.shape
        paired = name == "qkv" or (name == "up" and self.config.feedforward == "swiglu")
        many, whole = n_outputs > 8192, triton.next_power_of_2(n_inputs)
        if self.rows > 1:
            n, k = (64, 128) if many else (16, 256)
            each = (self._block_m() + n * (1 + paired)) * self.logits.element_size() * _STAGES
            while k > 16 and k * each > self._shared_memory:
                k //= 2
            return Tile(n, min(k, whole), 4, _STAGES)
        if linear.scale is None:
            n, k, warps = 4, 1024 if many else 2048, 4
        else:
            n, k, warps = 8 if many else 2 if name == "qkv" else 4, 2048, 8 if n_inputs > 2048 else 4
        return Tile(n // 2 if paired else n, min(k, whole), warps)

    def _block_m(self) -> int:
        return 1 if self.rows == 1 else max(16, triton.next_power_of_2(self.rows))

    def _attend(self, layer: int) -> None:
        config, tile = self.config, self._attention
        attention.attend[(self.rows, config.n_kv_heads, tile.n)](
            self._queries, self.cache.keys[layer].data, self.cache.values[layer].data, self.lengths, self._y,
            self._sums, self._peaks, self._weights, self._done,
            self.cache.slots, 1.4426950408889634 / config.head_dim**0.5,
            n_heads=config.n_heads, n_kv_heads=config.n_kv_heads, head_dim=config.head_dim,
            block_d=triton.next_power_of_2(config.head_dim), block_g=self._block_g, block_s=tile.k, splits=tile.n,
            fewest=_FEWEST_KEYS, early=self._early, num_warps=tile.warps, **self._options,
        )  # fmt: skip

    def _choose(self) -> None:
        """Replaces tokens by the next ones."""
        vocab, early = self.config.vocab_size, {"early": self._early, **self._options}
        bits = 16 if self.logits.dtype == torch.bfloat16 else 32
        whole = triton.next_power_of_2(vocab)
        tile = self._tiles.get("cutoffs", Tile(1, whole, max(4, min(32, whole // 1024))))
        sampling.find_cutoffs[(self.rows,)](
            self.logits, self._inverse_temperature, self._top_k, self._top_p, self._rank, self._index, self._peak,
            vocab, n_bits=bits, block_v=whole, num_warps=tile.warps, **early,
        )  # fmt: skip
        pieces = self._best.shape[1]
        sampling.find_best[(self.rows, pieces)](
            self.logits, self.uniform, self._inverse_temperature, self._min_p, self._greedy, self._rank, self._index,
            self._peak, self._best, self._best_token, vocab, n_bits=bits, block_v=_PIECE, **early,
        )  # fmt: skip
        sampling.take_best[(self.rows,)](
            self._best, self._best_token, self.tokens, self.lengths, vocab, self.cache.slots, pieces,
            block_p=triton.next_power_of_2(pieces), num_warps=1, **early,
        )  # fmt: skip
