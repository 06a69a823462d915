"""RoPE for texts longer than a model was first trained on: the known ways to change its wavelengths.

Each way gives a new angle per position for every pair of channels. ``linear`` is position interpolation (Chen et al.
2023), ``dynamic`` the NTK-aware base that grows with the text (bloc97 and emozilla 2023, described in Peng et al. 2023,
appendix), ``yarn`` is YaRN (Peng et al. 2023), and ``llama3`` the rule of Llama 3.1 (Dubey et al. 2024). Names and
numbers are those of Hugging Face's ``rope_parameters``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from modelcore.checks import check_flag, is_number, is_whole
from modelcore.errors import InputError

RopeScalingKind = Literal["linear", "dynamic", "llama3", "yarn"]

# Which fields each kind has beside its factor.
_FIELDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": ("original_context",),
    "llama3": ("original_context", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_context", "attention_factor", "beta_fast", "beta_slow", "truncate"),
}


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE is stretched.

    With ``dynamic``, a text longer than ``original_context`` has the angles of the length that a pass reaches, that of
    the batch's longest row; keys that are in a cache keep the angles of the pass that wrote them, as in Hugging Face's
    models. So a long text read in pieces differs a little from the same one read at once. With all other kinds the two
    are equal.

    Attributes:
        kind: ``linear`` divides every angle by ``factor``. ``dynamic`` leaves texts of up to ``original_context``
            tokens alone and enlarges RoPE's base for longer ones, the more the longer they are. ``llama3`` divides the
            slow angles by ``factor``, leaves the fast ones alone and blends between. ``yarn`` does the same by
            another rule and makes the scores larger.
        factor: How many times longer the context is to be, at least 1.
        original_context: Tokens of context before the stretching; not for ``linear``.
        low_freq_factor: ``llama3``: pairs that turn less often than this in the original context are slow.
        high_freq_factor: ``llama3``: pairs that turn more often than this are fast.
        attention_factor: ``yarn``: what queries and keys are multiplied by; None: 0.1 ln(factor) + 1, as in the paper.
        beta_fast: ``yarn``: pairs that turn more often than this in the original context are fast.
        beta_slow: ``yarn``: pairs that turn less often than this are slow.
        truncate: ``yarn``: whether the bounds between slow and fast are rounded outward to whole pairs.

    Raises:
        InputError: If a number is out of range, or belongs to another kind.
    """

    kind: RopeScalingKind
    factor: float
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            kinds = ", ".join(get_args(RopeScalingKind))
            raise InputError(f"RoPE scaling {self.kind!r} is not supported; it must be one of: {kinds}")
        for field in dataclasses.fields(self)[2:]:
            if field.name not in _FIELDS[self.kind] and getattr(self, field.name) != field.default:
                value = getattr(self, field.name)
                raise InputError(f"{field.name} is {value!r}, but RoPE scaling {self.kind!r} has no such number")
        if not (is_number(self.factor) and self.factor >= 1):
            raise InputError(f"the factor of RoPE scaling is {self.factor!r}; it must be a number of 1 or more")
        original = self.original_context
        if "original_context" in _FIELDS[self.kind] and not is_whole(original, 1):
            raise InputError(
                f"original_context of RoPE scaling {self.kind!r} is {original!r}; "
                "it must be a whole number of 1 or more, the context before the stretching"
            )
        for slow, fast in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            low, high = getattr(self, slow), getattr(self, fast)
            if not (is_number(low) and is_number(high) and 0 < low < high):
                raise InputError(f"{slow} is {low!r} and {fast} {high!r}; they must be above 0, the second the larger")
        if self.attention_factor is not None and not (is_number(self.attention_factor) and self.attention_factor > 0):
            raise InputError(f"attention_factor is {self.attention_factor!r}; it must be a number above 0, or null")
        check_flag("truncate", self.truncate)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> RopeScaling:
        """The scaling that plain JSON values describe; unknown or missing fields are an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(fields.keys() - known):
            raise InputError(f"unknown field {unknown[0]!r} of rope_scaling; known: {', '.join(sorted(known))}")
        if missing := sorted({"kind", "factor"} - fields.keys()):
            raise InputError(f"field {missing[0]!r} of rope_scaling is missing")
        return cls(**fields)

    @property
    def magnitude(self) -> float:
        """What the rotated queries and keys are multiplied by: 1, but for ``yarn``."""
        if self.kind != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def depends_on(self, length: int) -> bool:
        """Whether a text of ``length`` tokens has angles that shorter texts have not."""
        return self.kind == "dynamic" and length > self._original

    def frequencies(self, head_dim: int, theta: float, length: int, device: torch.device | None = None) -> Tensor:
        """Radians that each pair of channels turns by from one position to the next.

        Args:
            head_dim: Channels of a head, two a pair.
            theta: Base of RoPE's wavelengths.
            length: Tokens of the text; only ``dynamic`` asks.
            device: Where to compute.

        Returns:
            (head_dim / 2,) in fp32, the fastest pair first.
        """
        if self.kind == "dynamic":
            if self.depends_on(length):
                growth = self.factor * length / self._original - (self.factor - 1)
                theta = theta * growth ** (head_dim / (head_dim - 2))
            return rope_frequencies(head_dim, theta, device)
        plain = rope_frequencies(head_dim, theta, device)
        if self.kind == "linear":
            return plain / self.factor
        slow = self._slowness(plain, theta)
        return plain * (1 - slow) + plain / self.factor * slow

    def _slowness(self, plain: Tensor, theta: float) -> Tensor:
        """How slow each pair counts as, from 0 (its angle stays) to 1 (divided by the factor), (head_dim / 2,)."""
        if self.kind == "llama3":  # linear in the turns that a pair makes in the original context
            turns = self._original * plain / (2 * math.pi)
            return ((self.high_freq_factor - turns) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        # YaRN: linear in the pair's index, between the two that make beta_fast and beta_slow turns.
        head_dim = 2 * len(plain)
        first, last = (
            head_dim * math.log(self._original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        index = torch.arange(len(plain), dtype=torch.float32, device=plain.device)
        return ((index - first) / (last - first or 0.001)).clamp(0, 1)

    @property
    def _original(self) -> int:
        assert self.original_context is not None  # noqa: S101  (checked when made)
        return self.original_context


def rope_frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Plain RoPE's radians a position, theta^(-2i / head_dim) for pair i: (head_dim / 2,) in fp32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponents  # in this order, as published models were trained
