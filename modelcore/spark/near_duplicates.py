"""Near duplicates by MinHash and locality-sensitive hashing.

The chance that two sets have the same least element under a random order of all elements is their Jaccard similarity
(Broder, On the resemblance and containment of documents, 1997). So the part of equal numbers in two signatures, each
number the least hash of the set under a hash function of its own, estimates it. Cut into bands, signatures that agree
in a whole band bring two documents together, and nobody compares all with all (Leskovec, Rajaraman and Ullman, Mining
of Massive Datasets, chapter 3.4): with ``b`` bands of ``r`` numbers, two documents of similarity ``s`` meet with the
chance ``1 - (1 - s^r)^b``, which for the values here is 0.61 at 0.7, 0.95 at 0.8 and above 0.999 at 0.9.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SHINGLE_WORDS = 5
BANDS, ROWS = 16, 8
HASHES = BANDS * ROWS  # the estimate's standard error is at most 0.044
_AT_ONCE = 1 << 13  # shingles hashed at a time, 8 MiB
_WORD = re.compile(r"\w+")

_random = np.random.Generator(np.random.PCG64(19970611))  # fixed: signatures of all runs can be compared
# x -> (a·x + b) mod 2^64, its upper half: strongly universal with odd a (Dietzfelbinger, Universal hashing and k-wise
# independent random variables via integer arithmetic without primes, 1996).
_FACTORS = _random.integers(0, 1 << 64, HASHES, dtype=np.uint64) | np.uint64(1)
_TERMS = _random.integers(0, 1 << 64, HASHES, dtype=np.uint64)
_SHINGLE = _random.integers(0, 1 << 64, SHINGLE_WORDS, dtype=np.uint64) | np.uint64(1)


def signature(text: str) -> npt.NDArray[np.uint32]:
    """The MinHash signature of a text's sequences of SHINGLE_WORDS words, whatever their case and punctuation.

    Returns:
        uint32, shape (HASHES,). A text of fewer words has one sequence, one without words the signature of that.
    """
    words = np.fromiter(map(_word_hash, _WORD.findall(text.lower())), dtype=np.uint64)
    if len(words) < SHINGLE_WORDS:
        words = np.concatenate([words, np.zeros(SHINGLE_WORDS - len(words), dtype=np.uint64)])
    count = len(words) - SHINGLE_WORDS + 1
    shingles = np.zeros(count, dtype=np.uint64)  # a sum of products, mod 2^64
    for place, factor in enumerate(_SHINGLE):
        shingles += words[place : place + count] * factor
        shingles ^= shingles >> np.uint64(29)
    shingles = np.unique(shingles)
    least = np.full(HASHES, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(shingles), _AT_ONCE):
        some = shingles[start : start + _AT_ONCE, None]  # (n, 1)
        hashes = ((some * _FACTORS + _TERMS) >> np.uint64(32)).astype(np.uint32)  # (n, HASHES)
        np.minimum(least, hashes.min(axis=0), out=least)
    return least


def buckets(signed: npt.NDArray[np.uint32]) -> list[int]:
    """A number for each band of a signature, as signed 64 bits: equal for two documents that agree in that band."""
    bands = signed.astype("<u4").reshape(BANDS, ROWS)
    return [_digest(bytes([number]) + band.tobytes(), signed=True) for number, band in enumerate(bands)]


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return _digest(word.encode(), signed=False)


def _digest(content: bytes, *, signed: bool) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=signed)


def find_near_duplicates(
    spark: SparkSession, traits: Path, out: Path, threshold: float, portion_positions: int
) -> None:
    """Finds the documents that resemble an earlier one, and writes their names.

    Of all documents in a bucket each later one is held against the first. So what is left out always has one before it
    that it resembles, whatever was read in which order.

    Args:
        spark: The session.
        traits: Folder of parquet files with ``position``, ``document``, ``signature`` and ``buckets`` (both may be
            null).
        out: Folder to write: parquet files of ``document``, ``same_as`` and ``similarity``, below ``portion=N``.
        threshold: Least estimated similarity.
        portion_positions: By what to divide a position to get the number of its portion.
    """
    signed = spark.read.parquet(traits.absolute().as_uri()).where("signature is not null")
    met = signed.selectExpr("position", "explode(buckets) as bucket")
    pairs = met.selectExpr("position", "min(position) over (partition by bucket) as first")
    pairs = pairs.where("position > first").distinct()
    later = signed.selectExpr("position", "document", "signature")
    first = signed.selectExpr("position as first", "document as same_as", "signature as its_signature")
    equal = "aggregate(zip_with(signature, its_signature, (a, b) -> if(a = b, 1, 0)), 0, (sum, one) -> sum + one)"
    near = (
        pairs.join(later, "position")
        .join(first, "first")
        .selectExpr("position", "document", "first", "same_as", f"{equal} / {HASHES}.0D as similarity")
    )
    near = near.where(f"similarity >= {threshold}").selectExpr(
        "*", "row_number() over (partition by position order by first) as number"
    )
    named = near.where("number = 1").selectExpr(
        "document", "same_as", "similarity", f"position div {portion_positions} as portion"
    )
    named.repartition("portion").write.partitionBy("portion").parquet(out.absolute().as_uri())
