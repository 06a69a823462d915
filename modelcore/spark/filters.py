"""What may be left out of a training corpus though nothing is wrong with it: other languages, and poor text.

All of it is off unless asked for. Rules are published ones that look at one document alone and can be told in a line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from modelcore.errors import InputError

Quality = Literal["none", "gopher"]
FILTERS = ("language", "quality", "near_duplicate")
"""In the order that they are applied: what one has removed, the next does not see."""

LANGUAGE_CHARACTERS = 4000  # of a text; more of it does not tell more
_LEAST_SIMILAR = 0.7  # below it the bands of modelcore.spark.near_duplicates miss too much


@dataclass(frozen=True)
class Filters:
    """Which documents to leave out of the training corpus.

    Attributes:
        languages: ISO 639-1 codes of the languages to keep, a comma between; empty: all.
        quality: ``gopher``: leave out what fails the rules of :func:`poor_quality`.
        near_duplicates: Leave out documents of which an earlier one has at least this part of the word sequences in
            common (Jaccard similarity of 5-word shingles), 0.7 to 1; 0: none.
    """

    languages: str = ""
    quality: Quality = "none"
    near_duplicates: float = 0.0

    def __post_init__(self) -> None:
        if self.quality not in get_args(Quality):
            raise InputError(f"quality={self.quality!r} is unknown; it must be one of {', '.join(get_args(Quality))}")
        if self.near_duplicates and not _LEAST_SIMILAR <= self.near_duplicates <= 1:
            raise InputError(f"near_duplicates={self.near_duplicates} must be 0 (off) or from {_LEAST_SIMILAR} to 1")
        if self.languages and (unknown := set(self.kept_languages) - known_languages()):
            raise InputError(
                f"languages={self.languages!r} names {', '.join(sorted(unknown))}, which cannot be told; "
                "give codes such as en, de, fr"
            )

    @property
    def kept_languages(self) -> tuple[str, ...]:
        """The codes, each by itself."""
        return tuple(code.strip() for code in self.languages.split(",") if code.strip())

    def __bool__(self) -> bool:
        return bool(self.asked_names)

    @property
    def asked_names(self) -> list[str]:
        """Those of FILTERS that are on."""
        on = (bool(self.languages), self.quality != "none", bool(self.near_duplicates))
        return [name for name, is_on in zip(FILTERS, on, strict=True) if is_on]

    def fault(self, text: str) -> tuple[str, str] | None:
        """The filter that a text does not pass, and why, in words; None where it passes all that look at it alone."""
        if self.languages and (language := language_of(text)) not in self.kept_languages:
            return "language", f"its language is {language}"
        if self.quality == "gopher" and (why := poor_quality(text)):
            return "quality", why
        return None


NO_FILTERS = Filters()


def known_languages() -> set[str]:
    """The codes of the languages that :func:`language_of` can tell."""
    return {str(language) for language in _identifier().labels}


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language.

    By langid's model of byte n-grams (Lui and Baldwin, langid.py: An Off-the-shelf Language Identification Tool, 2012),
    in the package ``py3langid``, which brings the model along.
    """
    return str(_identifier().classify(text[:LANGUAGE_CHARACTERS])[0])


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
_BULLETS = ("•", "‣", "*", "-", "–")
_WORD = re.compile(r"\w+")
# Largest part of a text's characters that its most frequent n-gram of words may take, by n.
_MOST_FREQUENT = {2: 0.20, 3: 0.18, 4: 0.16}


def poor_quality(text: str) -> str | None:
    """Which rule for English web text a text fails, in words with its figure; None where it passes all.

    The rules and their limits are Gopher's: Rae et al., Scaling Language Models: Methods, Analysis & Insights from
    Training Gopher, 2021, appendix A.1.1, "Quality filtering" and "Repetition removal" (lines and n-grams of 2 to 4).
    """
    return next(_failed_rules(text), None)


def _failed_rules(text: str) -> Iterator[str]:
    words = text.split()
    if not 50 <= len(words) <= 100_000:
        yield f"{len(words):,} words, not 50 to 100,000"
        return
    mean = sum(map(len, words)) / len(words)
    if not 3 <= mean <= 10:
        yield f"words of {mean:.1f} characters in the mean, not 3 to 10"
    symbols = (text.count("#") + text.count("...") + text.count("…")) / len(words)
    if symbols > 0.1:
        yield f"{symbols:.0%} as many hash signs and ellipses as words, more than 10%"
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    if bullets > 0.9:
        yield f"{bullets:.0%} of the lines begin with a bullet, more than 90%"
    open_ends = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
    if open_ends > 0.3:
        yield f"{open_ends:.0%} of the lines end with an ellipsis, more than 30%"
    letters = sum(any(map(str.isalpha, word)) for word in words) / len(words)
    if letters < 0.8:
        yield f"{letters:.0%} of the words have a letter, less than 80%"
    lowered = [word.lower() for word in _WORD.findall(text)]
    if len(_STOP_WORDS.intersection(lowered)) < 2:
        yield "fewer than two of the words the, be, to, of, and, that, have, with"
    yield from _repetitions(lines, lowered, len(text))


def _repetitions(lines: list[str], words: list[str], characters: int) -> Iterator[str]:
    again = Counter(lines)
    repeated = 1 - len(again) / len(lines)
    if repeated > 0.3:
        yield f"{repeated:.0%} of the lines stand there before, more than 30%"
    taken = sum(len(line) * (count - 1) for line, count in again.items()) / characters
    if taken > 0.2:
        yield f"{taken:.0%} of the characters are in lines that stand there before, more than 20%"
    for length, limit in _MOST_FREQUENT.items():
        if len(words) < length:
            continue
        gram, count = Counter(zip(*(words[start:] for start in range(length)), strict=False)).most_common(1)[0]
        taken = sum(map(len, gram)) * count / characters
        if count > 1 and taken > limit:
            yield f"the {length} words {' '.join(gram)!r} take {taken:.0%} of the characters, more than {limit:.0%}"
