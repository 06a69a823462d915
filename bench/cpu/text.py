"""Text to measure with: the words of the sample's novels in random order, and some that nobody has seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

NOVELS = Path(__file__).parents[2] / "examples" / "austen" / "train"

_WORDS_A_DOCUMENT = 2000
_NEW = 50  # one in so many words is made up


def novels() -> list[str]:
    """The sample's novels."""
    return [path.read_text(encoding="utf-8") for path in sorted(NOVELS.glob("*.txt"))]


def documents(size: int) -> Iterator[str]:
    """Documents of some ten kilobytes, of ``size`` bytes or a little more in all; the same every time.

    Words have the frequencies that they have in the novels. So a tokenizer that remembers words gains by it as on real
    text, and one in fifty is made of two halves of others, as names and rare words are new in every text.
    """
    words = np.array([word for text in novels() for word in text.split(" ") if word.isascii()], dtype=object)
    generator = np.random.default_rng(0)
    made = 0
    while made < size:
        chosen = words[generator.integers(len(words), size=_WORDS_A_DOCUMENT)]
        for place in generator.integers(len(chosen), size=_WORDS_A_DOCUMENT // _NEW):
            first, last = words[generator.integers(len(words), size=2)]
            chosen[place] = first[: len(first) // 2 + 1] + last[len(last) // 2 :]
        text = " ".join(chosen)
        made += len(text)
        yield text
