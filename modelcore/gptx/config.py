"""The configuration of a decoder: every number that decides its shape."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from modelcore.checks import check_choice, check_flag, check_number, check_whole
from modelcore.errors import InputError
from modelcore.gptx.rope_scaling import RopeScaling

Positions = Literal["learned", "rope", "alibi"]
Norm = Literal["layernorm", "rmsnorm"]
FeedForwardKind = Literal["gelu", "gelu_tanh", "swiglu"]

# Beyond these, tensors have more elements than torch counts, and positions are no longer exact in fp32.
_SIZES_END = 2**31
_MOST_POSITIONS = 2**24

_LATER_FIELDS = {"rope_scaling", "sliding_window", "embedding_norm"}


@dataclass(frozen=True)
class GPTConfig:
    """Shape and kind of a decoder-only transformer.

    Attributes:
        vocab_size: Number of token ids, 0 … vocab_size - 1.
        context_length: Longest sequence the model is made for, in tokens.
        n_layers: Number of transformer blocks.
        d_model: Width of the residual stream.
        n_heads: Number of query heads; must divide ``d_model``.
        n_kv_heads: Number of key and value heads; must divide ``n_heads``
            (equal: multi-head, fewer: grouped-query, one: multi-query attention).
        d_ff: Inner width of the feed-forward layer.
        positions: ``learned`` adds a table of positions (GPT-2), ``rope`` rotates queries and
            keys (RoFormer), ``alibi`` adds a linear bias to the scores (ALiBi).
        norm: ``layernorm`` or ``rmsnorm``, before each sub-layer and after the last block.
        norm_eps: The norm's epsilon.
        feedforward: ``gelu`` (exact), ``gelu_tanh`` (GPT-2's approximation) or ``swiglu``.
        attention_bias: Whether the attention's linear layers have a bias.
        feedforward_bias: Whether the feed-forward's linear layers have a bias.
        norm_bias: Whether LayerNorm has a bias (RMSNorm never has one).
        tie_embeddings: Whether the output head is the token embedding itself.
        rope_theta: Base of RoPE's wavelengths; unused otherwise.
        dropout: Probability of dropping an activation while training.
        rope_scaling: How RoPE is stretched for long texts, or None for plain RoPE.
        sliding_window: Tokens that a token sees, itself and those right before it, or None: all before it.
        embedding_norm: Whether the token embeddings are normalized before the first block (BLOOM).

    Raises:
        InputError: If a field is out of range or two fields contradict each other.
    """

    vocab_size: int
    context_length: int
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    positions: Positions = "rope"
    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-5
    feedforward: FeedForwardKind = "swiglu"
    attention_bias: bool = False
    feedforward_bias: bool = False
    norm_bias: bool = False
    tie_embeddings: bool = False
    rope_theta: float = 10_000.0
    dropout: float = 0.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    embedding_norm: bool = False

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "context_length",
            "n_layers",
            "d_model",
            "n_heads",
            "n_kv_heads",
            "d_ff",
        ):
            check_whole(name, getattr(self, name))
            if getattr(self, name) >= _SIZES_END:
                raise InputError(f"{name} is {getattr(self, name)}; no size of a model reaches 2^31")
        if self.context_length > _MOST_POSITIONS:
            raise InputError(f"context_length is {self.context_length}; fp32 tells no more than 2^24 positions apart")
        if self.sliding_window is not None:
            check_whole("sliding_window", self.sliding_window)
        for name, kind in (("positions", Positions), ("norm", Norm), ("feedforward", FeedForwardKind)):
            check_choice(name, getattr(self, name), get_args(kind))
        for name in ("attention_bias", "feedforward_bias", "norm_bias", "tie_embeddings", "embedding_norm"):
            check_flag(name, getattr(self, name))
        for name in ("norm_eps", "rope_theta", "dropout"):
            check_number(name, getattr(self, name))
        if self.d_model % self.n_heads:
            raise InputError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; "
                "each head takes an equal share of the width"
            )
        if self.n_heads % self.n_kv_heads:
            raise InputError(
                f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.n_kv_heads}; "
                "each key head serves an equal number of query heads"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise InputError(
                f"head size {self.head_dim} (d_model / n_heads) is odd; RoPE rotates pairs and needs it even"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.norm_eps <= 0:
            raise InputError(f"norm_eps is {self.norm_eps}; it must be above 0")
        if self.rope_theta <= 0:
            raise InputError(f"rope_theta is {self.rope_theta}; it must be above 0")
        if self.rope_scaling is not None:
            self._check_scaling(self.rope_scaling)

    def _check_scaling(self, scaling: object) -> None:
        if not isinstance(scaling, RopeScaling):
            raise InputError(f"rope_scaling is {scaling!r}; its kind, factor and further numbers are needed, or null")
        if self.positions != "rope":
            raise InputError(f"rope_scaling is given, but positions is {self.positions!r}; only RoPE can be scaled")
        if scaling.kind == "yarn" and self.rope_theta <= 1:
            raise InputError(f"rope_theta is {self.rope_theta}; RoPE scaling 'yarn' needs it above 1")
        if scaling.kind == "dynamic":
            original = scaling.original_context or 0
            if self.context_length != int(scaling.factor * original):
                raise InputError(
                    f"context_length is {self.context_length}; with RoPE scaling 'dynamic' it must be factor times "
                    f"original_context, {int(scaling.factor * original)}"
                )
            if self.head_dim < 4:
                raise InputError(f"head size {self.head_dim} is too small for RoPE scaling 'dynamic'; at least 4")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Rows of the fused projection that are query, key and value, in this order."""
        kv = self.n_kv_heads * self.head_dim
        return self.n_heads * self.head_dim, kv, kv

    def num_params(self) -> int:
        """Number of parameters, a tied head counted once."""
        d, ff = self.d_model, self.d_ff
        qkv = sum(self.qkv_sizes)
        attention = d * qkv + d * d + (qkv + d if self.attention_bias else 0)
        if self.feedforward == "swiglu":
            feedforward = 3 * d * ff + (2 * ff + d if self.feedforward_bias else 0)
        else:
            feedforward = 2 * d * ff + (ff + d if self.feedforward_bias else 0)
        norm = 2 * d if self.norm == "layernorm" and self.norm_bias else d
        total = self.n_layers * (attention + feedforward + 2 * norm) + norm
        total += norm if self.embedding_norm else 0
        total += self.vocab_size * d * (1 if self.tie_embeddings else 2)
        if self.positions == "learned":
            total += self.context_length * d
        return total

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of one training token, forward and backward.

        The convention is 6 N + 12 L d T: N counts the parameters without the input embedding (a tied
        head does multiply, so it counts) and without the table of positions; T is ``sequence_length``, or the
        sliding window where that is shorter.
        """
        n = self.num_params()
        if not self.tie_embeddings:
            n -= self.vocab_size * self.d_model
        if self.positions == "learned":
            n -= self.context_length * self.d_model
        seen = sequence_length if self.sliding_window is None else min(sequence_length, self.sliding_window)
        return 6 * n + 12 * self.n_layers * self.d_model * seen

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values.

        Fields that came after the first version of the format are left out where they have their default, so that a
        model without them is described as it always was.
        """
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value or name not in _LATER_FIELDS}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> GPTConfig:
        """The configuration that :meth:`to_dict` described; unknown or missing fields are an error."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(fields.keys() - known.keys()):
            raise InputError(f"unknown model field {unknown[0]!r}; known: {', '.join(known)}")
        required = {name for name, field in known.items() if field.default is dataclasses.MISSING}
        if missing := sorted(required - fields.keys()):
            raise InputError(f"model field {missing[0]!r} is missing")
        if isinstance(fields.get("rope_scaling"), dict):
            fields = fields | {"rope_scaling": RopeScaling.from_dict(fields["rope_scaling"])}
        return cls(**fields)
