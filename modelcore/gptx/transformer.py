"""The decoder: embedding, pre-norm blocks, final norm, head (Radford et al. 2019, Touvron et al. 2023)."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modelcore.errors import InputError
from modelcore.gptx.attention import Attention, AttentionInputs
from modelcore.gptx.config import GPTConfig
from modelcore.gptx.feedforward import FeedForward
from modelcore.gptx.kv_cache import KVCache
from modelcore.gptx.linear import Linear
from modelcore.gptx.norms import build_norm
from modelcore.gptx.positions import alibi_bias, alibi_slopes, positions_in_documents, rope_at, rope_tables


class Block(nn.Module):
    """Attention, then feed-forward, each normalized before and added to the residual stream after.

    The last of these sums is left to whoever comes next: there it is one kernel with the norm that follows it, where
    blocks are compiled one by one.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.feedforward_norm = build_norm(config)
        self.feedforward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, change: Tensor | None, inputs: AttentionInputs, cache: KVCache | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and the change still to be added to it, from what the block before gave as these."""
        if change is not None:
            x = x + change
        x = x + self.dropout(self.attention(self.attention_norm(x), inputs, cache, layer))
        return x, self.dropout(self.feedforward(self.feedforward_norm(x)))  # each (batch, time, d_model)


class GPT(nn.Module):
    """A decoder-only language model of the shape that ``config`` gives.

    Weights are drawn from N(0, 0.02), the two projections into the residual stream scaled down by
    sqrt(2 · n_layers), biases zero: GPT-2's initialization. They come from torch's global generator;
    seed it first for a model that can be made again.

    Attributes:
        config: The shape.
        gradient_checkpointing: Whether a forward pass with gradients keeps only each block's input; the backward pass
            computes the block again, dropout included, and gives the same gradients.
        compiled: Whether a forward pass with gradients runs blocks compiled by ``torch.compile``: one compilation
            serves all blocks.
    """

    cos: Tensor | None
    sin: Tensor | None
    slopes: Tensor | None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = self.compiled = False
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.embedding_norm = build_norm(config) if config.embedding_norm else None
        self.position_embedding = (
            nn.Embedding(config.context_length, config.d_model) if config.positions == "learned" else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = build_norm(config)
        self.head = Linear(config.d_model, config.vocab_size, bias=False)
        self.apply(self._initialize)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "feedforward.down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layers))
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        cos = sin = slopes = None
        if config.positions == "rope":
            cos, sin = rope_tables(config.head_dim, config.context_length, config.rope_theta, config.rope_scaling)
        elif config.positions == "alibi":
            slopes = alibi_slopes(config.n_heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("slopes", slopes, persistent=False)

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embedding.weight.device

    def forward(self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """The logits of the next token after each position.

        Args:
            tokens: (batch, time) int64 ids.
            cache: If given, ``tokens`` follow what it holds. Their keys and values are written to it, but they
                count only once the caller says how many with :meth:`KVCache.advance`.
            documents: If given, (batch, time) integers: the document of each token. A token sees its own document
                alone, whose positions begin at 0: each document gets the logits that it would get by itself.

        Returns:
            (batch, time, vocab_size), in the parameters' dtype.

        Raises:
            InputError: If ``tokens`` is no (batch, time) matrix of int64 or does not fit the context, or ``documents``
                does not fit the tokens or what the model can do.
        """
        return cast(Tensor, self.head(self.hidden(tokens, cache, documents)))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """The normalized states that the head reads, (batch, time, d_model); arguments as in :meth:`forward`."""
        inputs, positions = self._inputs(tokens, cache, documents)
        x = self.embedding(tokens)  # (B, T, d_model)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        x = self.dropout(x)
        if torch.is_autocast_enabled(x.device.type):  # the sums of the residual stream are as wide as the products
            x = x.to(torch.get_autocast_dtype(x.device.type))
        change = None
        training = torch.is_grad_enabled()
        run = _compiled_run() if self.compiled and training else _run
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and training:
                x, change = checkpoint(run, block, x, change, inputs, cache, layer, use_reentrant=False)
            else:
                x, change = run(block, x, change, inputs, cache, layer)
        return cast(Tensor, run(_norm_of_sum, self.norm, x, change))

    def _inputs(
        self, tokens: Tensor, cache: KVCache | None, documents: Tensor | None = None
    ) -> tuple[AttentionInputs, Tensor]:
        """What all blocks share, and the positions of ``tokens``, (batch, time) or (1, time)."""
        if tokens.dim() != 2 or tokens.dtype != torch.long:
            raise InputError(
                f"tokens have shape {tuple(tokens.shape)} and type {tokens.dtype}; "
                "a (batch, time) matrix of torch.int64 is needed"
            )
        time = tokens.shape[1]
        if not 1 <= time <= self.config.context_length:
            raise InputError(
                f"{time} tokens do not fit the model's context of {self.config.context_length}; "
                "give at least one and at most that many"
            )
        if documents is not None:
            self._check_documents(tokens, cache, documents)
            positions = positions_in_documents(documents)  # (B, T)
            cos, sin = self._rotation(positions, time)
            return AttentionInputs(cos, sin, self._mask(positions, positions, documents), False, None), positions
        if cache is None:
            positions, to_write = torch.arange(time, device=tokens.device)[None], None  # (1, T)
            cos, sin = self._rotation(None, time)
        else:
            positions = to_write = cache.positions(time)  # (B, T)
            cos, sin = self._rotation(positions, cache.longest + time)
        before, window = 0 if cache is None else cache.longest, self.config.sliding_window
        if self.slopes is None and (window is None or before + time <= window):  # nothing is out of sight
            # SDPA's own causal order says it all where these tokens are the whole text; one token after rows of one
            # length sees whatever there is.
            if before == 0:
                return AttentionInputs(cos, sin, None, True, to_write), positions
            if time == 1 and cache is not None and cache.even:
                return AttentionInputs(cos, sin, None, False, to_write), positions
        mask = self._mask(positions, positions if cache is None else cache.key_positions(time))
        return AttentionInputs(cos, sin, mask, False, to_write), positions

    def _check_documents(self, tokens: Tensor, cache: KVCache | None, documents: Tensor) -> None:
        if documents.shape != tokens.shape or documents.is_floating_point():
            raise InputError(
                f"documents have shape {tuple(documents.shape)} and type {documents.dtype}; "
                f"an integer for each of the {tuple(tokens.shape)} tokens is needed"
            )
        if cache is not None:
            raise InputError("documents and a cache were given; a cache holds one document a row")
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.depends_on(tokens.shape[1]):
            raise InputError(
                "documents were given to a model whose RoPE scaling depends on the length of the text; "
                "it would be another for each of them"
            )

    def _rotation(self, positions: Tensor | None, length: int) -> tuple[Tensor | None, Tensor | None]:
        """RoPE's cosines and sines for the tokens at ``positions`` of a text of ``length``; None: for all of it.

        Where the angles depend on the length (dynamic scaling), it is that of the longest row once these tokens are
        read; keys that are in a cache already keep the angles of the pass that wrote them. So do Hugging Face's.

        Returns:
            Each (time, head_dim / 2) or (batch, 1, time, head_dim / 2); None without RoPE.
        """
        if self.cos is None or self.sin is None:
            return None, None
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.depends_on(length):
            where = torch.arange(length, device=self.cos.device) if positions is None else positions[:, None]
            return rope_at(where, length, self.config.head_dim, self.config.rope_theta, scaling)
        if positions is None:
            return self.cos[:length], self.sin[:length]
        return self.cos[positions][:, None], self.sin[positions][:, None]

    def _mask(self, positions: Tensor, key_positions: Tensor, documents: Tensor | None = None) -> Tensor:
        """Which keys each query sees: boolean, or ALiBi's bias with -inf where it does not.

        Args:
            positions: (batch or 1, time), the queries'.
            key_positions: (batch or 1, keys).
            documents: (batch, time), where queries and keys are the same tokens and see their own document alone.

        Returns:
            (batch or 1, 1, time, keys) boolean, or (batch or 1, heads, time, keys) in the parameters' dtype.
        """
        queries, keys = positions[:, None, :, None], key_positions[:, None, None]
        visible = keys <= queries  # (B, 1, T, S)
        if self.config.sliding_window is not None:
            visible = visible & (keys > queries - self.config.sliding_window)
        if documents is not None:
            visible = visible & (documents[:, None, :, None] == documents[:, None, None])
        if self.slopes is None:
            return visible
        bias = alibi_bias(self.slopes.float(), positions, key_positions)  # (B, heads, T, S)
        return bias.masked_fill(~visible, float("-inf")).to(self.embedding.weight.dtype)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@functools.cache
def _compiled_run() -> Callable[..., Any]:
    """The same, compiled anew for each kind of function and each shape of arguments."""
    return torch.compile(_run)


def _norm_of_sum(norm: nn.Module, x: Tensor, change: Tensor) -> Tensor:
    return cast(Tensor, norm(x + change))


@contextlib.contextmanager
def evaluating(*models: GPT) -> Iterator[None]:
    """Turns dropout off while the block runs, and afterwards back on where it was."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, was in zip(models, training, strict=True):
            model.train(was)
