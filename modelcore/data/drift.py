"""Whether text is still of the kind that a model was trained on: distributions of its tokens, compared.

What is compared comes from the model's own tokenizer. The distance of two distributions of tokens is Jensen and
Shannon's (Lin 1991; its root is a metric, Endres and Schindelin 2003): 0 for equal ones, 1 for such as share no token.
Lengths of documents are compared by the population stability index, as scorecards are (Siddiqi, Credit Risk Scorecards,
2006: below 0.1 nothing to speak of, above 0.25 another population). Both are larger than 0 for two samples of one
distribution: what chance alone makes of so few tokens is taken off the divergence, and of few documents the lengths are
not compared. What is left is that each text has subjects and names of its own.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modelcore.data.shards import TokenSplit
from modelcore.errors import InputError

if TYPE_CHECKING:
    from modelcore.tokenizers import Tokenizer

SAMPLE_TOKENS = 1 << 24  # of a split, in blocks spread evenly over it
SAMPLE_BYTES = 4 << 20  # of new text, in whole documents
BLOCK_TOKENS = 1 << 16
LENGTH_BINS = 24  # by powers of two, in tokens
ENOUGH_DOCUMENTS = 100

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextProfile:
    """What is known of a text by its tokens.

    Attributes:
        tokenizer_digest: SHA-256 of the tokenizer, in hexadecimal.
        n_bytes: UTF-8 bytes that the tokens stand for.
        n_tokens: Tokens of the whole text, end-of-text tokens included.
        unigrams: How often each token was seen in what was looked at, by id.
        lengths: Documents by length: entry ``i`` counts those of ``2**i`` tokens to less than twice as many.
        fallback: Tokens among the seen that stand for a byte, or for something unknown: what the vocabulary lacks.
    """

    tokenizer_digest: str
    n_bytes: int
    n_tokens: int
    unigrams: tuple[int, ...]
    lengths: tuple[int, ...]
    fallback: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token stands for on average."""
        return self.n_bytes / self.n_tokens

    @property
    def fallback_share(self) -> float:
        """Share of the seen tokens that stand for a byte or something unknown."""
        return self.fallback / sum(self.unigrams)

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        return asdict(self) | {"unigrams": list(self.unigrams), "lengths": list(self.lengths)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TextProfile:
        """What :meth:`to_dict` gave.

        Raises:
            InputError: If it is something else.
        """
        try:
            return cls(**{**fields, "unigrams": tuple(fields["unigrams"]), "lengths": tuple(fields["lengths"])})
        except (TypeError, KeyError) as error:
            raise InputError(f"this is no profile of a text: {error}; register the model again") from None


def profile_split(split: TokenSplit, tokenizer: Tokenizer) -> TextProfile:
    """The profile of a tokenized text, from at most SAMPLE_TOKENS of its tokens and about as many documents.

    Args:
        split: The tokens.
        tokenizer: The tokenizer that made them.
    """
    counts = np.zeros(split.vocab_size, dtype=np.int64)
    for start in range(0, split.n_tokens, BLOCK_TOKENS * max(1, math.ceil(split.n_tokens / SAMPLE_TOKENS))):
        block = split.window(start, min(BLOCK_TOKENS, split.n_tokens - start))
        counts += np.bincount(block, minlength=split.vocab_size)
    bounds = split.document_bounds()
    every = max(1, math.ceil(split.n_documents / SAMPLE_TOKENS))
    lengths = bounds[1::every] - bounds[:-1:every]
    return _profile(tokenizer, split.n_bytes, split.n_tokens, counts, lengths)


@dataclass
class SampledText:
    """Documents drawn from a corpus, encoded one after another; each ends with an end-of-text token.

    Attributes:
        tokens: Their ids, int64, (n_tokens,).
        lengths: Tokens of each document, int64.
        n_bytes: UTF-8 bytes of the documents.
        vocab_size: Ids of the vocabulary.
        documents: Documents that they were drawn from.
    """

    tokens: npt.NDArray[np.int64]
    lengths: Counts
    n_bytes: int
    vocab_size: int
    documents: int
    n_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_tokens = len(self.tokens)

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """The tokens ``start`` up to and without ``start + length``."""
        return self.tokens[start : start + length]


@dataclass(frozen=True)
class DrawnTexts:
    """Documents drawn from a corpus.

    Attributes:
        texts: The documents, in their order.
        n_bytes: UTF-8 bytes of them.
        documents: Documents that they were drawn from.
    """

    texts: list[str]
    n_bytes: int
    documents: int

    def encode(self, tokenizer: Tokenizer) -> SampledText:
        """The documents' tokens."""
        ids, lengths = tokenizer.encode_batch(self.texts, eos=True)
        return SampledText(ids.astype(np.int64), lengths, self.n_bytes, tokenizer.vocab_size, self.documents)


def draw_texts(texts: Iterable[str], *, sample_bytes: int = SAMPLE_BYTES, seed: int = 0) -> DrawnTexts:
    """Draws whole documents from a stream of any length, each with the same chance.

    Args:
        texts: The documents.
        sample_bytes: Most bytes to keep; a single document may be larger.
        seed: Of the draw.

    Raises:
        InputError: If there is no document.
    """
    draw = random.Random(seed)
    kept: list[tuple[float, int, str, int]] = []  # a heap, the document with the largest number on top
    size = documents = 0
    for text in texts:
        documents += 1
        n_bytes = len(text.encode())
        heapq.heappush(kept, (-draw.random(), documents, text, n_bytes))
        size += n_bytes
        while size > sample_bytes and len(kept) > 1:
            size -= heapq.heappop(kept)[3]
    if not documents:
        raise InputError("there is no document to look at; give a corpus that holds text")
    return DrawnTexts([text for _, _, text, _ in sorted(kept, key=lambda one: one[1])], size, documents)


def profile_sample(sample: SampledText, tokenizer: Tokenizer) -> TextProfile:
    """The profile of documents that were drawn from a corpus."""
    counts = np.bincount(sample.tokens, minlength=sample.vocab_size)
    return _profile(tokenizer, sample.n_bytes, sample.n_tokens, counts, sample.lengths)


def _profile(tokenizer: Tokenizer, n_bytes: int, n_tokens: int, counts: Counts, lengths: Counts) -> TextProfile:
    bins = np.clip(np.log2(np.maximum(lengths, 1)).astype(np.int64), 0, LENGTH_BINS - 1)
    fallback = sum(int(counts[token]) for token in _fallback_ids(tokenizer))
    return TextProfile(
        tokenizer.digest,
        n_bytes,
        n_tokens,
        tuple(counts.tolist()),
        tuple(np.bincount(bins, minlength=LENGTH_BINS).tolist()),
        fallback,
    )


def _fallback_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids that stand for what the vocabulary lacks: SentencePiece's byte pieces ``<0x0A>``, and the unknown token."""
    bytes_ = [i for i in range(tokenizer.vocab_size) if re.fullmatch(r"<0x[0-9A-F]{2}>", tokenizer.name(i))]
    return [*bytes_, *([tokenizer.unk_id] if tokenizer.unk_id is not None else [])]


def jensen_shannon_distance(first: Iterable[int], second: Iterable[int]) -> float:
    """The root of the Jensen-Shannon divergence, in bits, of two distributions given by counts; 0 to 1."""
    p, q = (np.asarray(list(counts), dtype=np.float64) for counts in (first, second))
    p, q = p / p.sum(), q / q.sum()
    return math.sqrt(max(0.0, float(_divergences(p, q).sum())))


def distance_beyond_chance(reference: Iterable[int], text: Iterable[int], *, draws: int = 4) -> float:
    """The Jensen-Shannon distance of two counts, without what chance makes of so many tokens.

    From the divergence is taken the mean divergence of two samples, of these sizes, that are drawn from the reference's
    distribution (a parametric bootstrap with a fixed seed); less than nothing is 0.
    """
    old, new = (np.asarray(list(counts), dtype=np.int64) for counts in (reference, text))
    generator = np.random.default_rng(0)
    share = old / old.sum()
    by_chance = [
        jensen_shannon_distance(*(generator.multinomial(int(counts.sum()), share) for counts in (old, new))) ** 2
        for _ in range(draws)
    ]
    return math.sqrt(max(0.0, jensen_shannon_distance(old, new) ** 2 - sum(by_chance) / draws))


def _divergences(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What each entry adds to the Jensen-Shannon divergence, bits."""
    middle = (p + q) / 2
    ratios = [np.divide(part, middle, out=np.ones_like(part), where=part > 0) for part in (p, q)]
    return np.asarray((p * np.log2(ratios[0]) + q * np.log2(ratios[1])) / 2)


def population_stability_index(expected: Iterable[int], actual: Iterable[int]) -> float:
    """The population stability index of two histograms given by counts; half a count is added to each bin of either.

    Bins that are empty in both are left out.
    """
    old, new = (np.asarray(list(counts), dtype=np.float64) for counts in (expected, actual))
    used = old + new > 0
    old, new = old[used] + 0.5, new[used] + 0.5
    old, new = old / old.sum(), new / new.sum()
    return float(((new - old) * np.log(new / old)).sum())


@dataclass(frozen=True)
class Limits:
    """From where on a figure says that text is of another kind.

    Attributes:
        token_distance: Jensen-Shannon distance of the distributions of tokens beyond chance, 0 to 1. Between novels
            of one author it is 0.1 to 0.2, from them to prose about software 0.55 (docs/enterprise.md).
        length_psi: Population stability index of the lengths of documents; 0.25 is Siddiqi's.
        bytes_per_token_change: Change of the bytes that a token stands for, as a share: the tokenizer fits less well.
        fallback_rise: Rise of the share of tokens that stand for a byte or something unknown.
        bits_per_byte_rise: Rise of the bits per byte that the model needs, as a share of what it needs for its own
            held-out text.
    """

    token_distance: float = 0.3
    length_psi: float = 0.25
    bytes_per_token_change: float = 0.15
    fallback_rise: float = 0.01
    bits_per_byte_rise: float = 0.1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"max_{name} is {value}; it must be a number above 0")


@dataclass(frozen=True)
class Drift:
    """How far a text is from another.

    Attributes:
        figures: By the names of :class:`Limits`; a figure that could not be had is not there.
        reasons: What is past its limit, in words; empty: the text is of the same kind.
    """

    figures: dict[str, float]
    reasons: list[str]


def compare(
    reference: TextProfile,
    text: TextProfile,
    limits: Limits,
    *,
    reference_bits_per_byte: float | None = None,
    bits_per_byte: float | None = None,
) -> Drift:
    """How far a text is from the one that a model was trained on.

    Args:
        reference: The text that the model was trained on.
        text: The new one.
        limits: From where on it is too far.
        reference_bits_per_byte: What the model needs for its own held-out text, or None.
        bits_per_byte: What it needs for the new one, or None.

    Raises:
        InputError: If the profiles were made with different tokenizers.
    """
    if reference.tokenizer_digest != text.tokenizer_digest:
        raise InputError("the two texts were cut into tokens by different tokenizers; take the model's own for both")
    figures = {
        "token_distance": distance_beyond_chance(reference.unigrams, text.unigrams),
        "bytes_per_token_change": abs(text.bytes_per_token / reference.bytes_per_token - 1),
        "fallback_rise": text.fallback_share - reference.fallback_share,
    }
    # By chance alone the index of N and M documents in B bins is about (B - 1)(1/N + 1/M) (Yurdakul 2018).
    if min(sum(reference.lengths), sum(text.lengths)) >= ENOUGH_DOCUMENTS:
        figures["length_psi"] = population_stability_index(reference.lengths, text.lengths)
    if reference_bits_per_byte is not None and bits_per_byte is not None:
        figures["bits_per_byte_rise"] = bits_per_byte / reference_bits_per_byte - 1
    words = {
        "token_distance": "other tokens",
        "length_psi": "documents of other lengths",
        "bytes_per_token_change": "a tokenizer that fits otherwise",
        "fallback_rise": "more that the vocabulary lacks",
        "bits_per_byte_rise": "text that the model predicts worse",
    }
    known = asdict(limits)
    reasons = [
        f"{words[name]} ({name} {value:.3f}, limit {known[name]:g})"
        for name, value in figures.items()
        if not value <= known[name]  # NaN is past any limit
    ]
    return Drift(figures, reasons)


def token_shifts(reference: TextProfile, text: TextProfile, tokenizer: Tokenizer, most: int = 20) -> list[list[Any]]:
    """The tokens that make most of the distance: name, and its share in either text; the largest first."""
    p, q = (np.asarray(one.unigrams, dtype=np.float64) / sum(one.unigrams) for one in (reference, text))
    parts = _divergences(p, q)
    largest = np.argsort(-parts, kind="stable")[:most]
    return [[tokenizer.name(int(i)), float(p[i]), float(q[i])] for i in largest if parts[i] > 0]


def frequency_bands(reference: TextProfile, text: TextProfile, bands: int = 10) -> dict[str, list[Any]]:
    """How much of either text the most frequent tokens are, the next most frequent ones, and so on.

    Tokens are sorted by how often the reference has them, and cut into bands that hold about equal shares of it.

    Returns:
        Columns ``band`` (from 1), ``reference`` and ``text``, shares that add up to 1 each.
    """
    p, q = (np.asarray(one.unigrams, dtype=np.float64) / sum(one.unigrams) for one in (reference, text))
    order = np.argsort(-p, kind="stable")
    # A token belongs to the band in which the middle of its own share lies.
    middle = np.cumsum(p[order]) - p[order] / 2
    band = np.minimum((middle * bands).astype(np.int64), bands - 1)
    return {
        "band": list(range(1, bands + 1)),
        "reference": np.bincount(band, weights=p[order], minlength=bands).tolist(),
        "text": np.bincount(band, weights=q[order], minlength=bands).tolist(),
    }
