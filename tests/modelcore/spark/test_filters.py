"""Filters of a training corpus: what each lets pass and why not; MinHash against the Jaccard similarity itself."""

import random
import re

import numpy as np
import pytest

from modelcore.errors import InputError
from modelcore.spark.filters import Filters, language_of, poor_quality
from modelcore.spark.near_duplicates import BANDS, HASHES, buckets, signature

PROSE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property "
    "of some one or other of their daughters."
)


def test_good_prose_passes_every_rule():
    assert poor_quality(PROSE) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Too short to be and to have.", "7 words, not 50 to 100,000"),
        ("a b the of " * 30, "words of 1.8 characters in the mean, not 3 to 10"),
        (PROSE + " #" * 20, "as many hash signs and ellipses as words"),
        ("\n".join(f"- {line}" for line in PROSE.split(",")), "100% of the lines begin with a bullet"),
        (PROSE.replace(",", "...\n") + "...", "100% of the lines end with an ellipsis"),
        (PROSE + " 1234" * 40, "of the words have a letter, less than 80%"),
        (" ".join(word for word in PROSE.split() if len(word) > 4) * 3, "fewer than two of the words"),
        (f"{PROSE}\n" * 3, "67% of the lines stand there before, more than 30%"),
    ],
)
def test_a_text_that_fails_a_rule_is_told_which(text, why):
    assert why in " | ".join(filter(None, [poor_quality(text), *Failed(text)]))


class Failed(list):
    """Every rule that a text fails: some texts fail several."""

    def __init__(self, text):
        from modelcore.spark.filters import _failed_rules

        super().__init__(_failed_rules(text))


def test_languages_are_told_apart():
    assert language_of(PROSE) == "en"
    assert language_of("Es ist eine allgemein anerkannte Wahrheit, dass ein Junggeselle eine Frau braucht.") == "de"
    assert Filters(languages="de, fr").fault(PROSE) == ("language", "its language is en")
    assert Filters(languages="en").fault(PROSE) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"languages": "english"},
            "names english, which cannot be told; give codes such as en, de, fr",
        ),
        ({"quality": "good"}, "quality='good' is unknown; it must be one of none, gopher"),
        ({"near_duplicates": 0.5}, "near_duplicates=0.5 must be 0 (off) or from 0.7 to 1"),
    ],
)
def test_what_no_filter_can_be_is_refused_in_one_line(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Filters(**arguments)


def shingles(text):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


@pytest.mark.parametrize("changed", [0.0, 0.01, 0.03, 0.1, 1.0])
def test_signatures_estimate_the_jaccard_similarity(changed):
    draw = random.Random(7)
    words = [f"word{draw.randrange(3000)}" for _ in range(4000)]
    others = [f"other{number}" if draw.random() < changed else word for number, word in enumerate(words)]
    first, second = " ".join(words), ", ".join(others).upper()
    true = len(shingles(first) & shingles(second)) / len(shingles(first) | shingles(second))
    estimate = np.mean(signature(first) == signature(second))
    assert abs(estimate - true) <= 3 * np.sqrt(true * (1 - true) / HASHES)  # three standard errors
    met = len(set(buckets(signature(first))) & set(buckets(signature(second))))
    assert met == BANDS if true == 1 else met >= 1 if true > 0.85 else met == 0 if true == 0 else True


def test_a_text_of_few_words_or_none_has_a_signature():
    assert np.array_equal(signature("Yes, I do."), signature("yes i DO"))
    assert not np.array_equal(signature("yes"), signature("no"))
    assert signature("...").shape == (HASHES,)
