"""Two tasks made from a text that a model has not seen: a passage's last word, and which continuation follows it.

A passage begins with a sentence and is taken as it stands in the text, line breaks included. No two passages of a task
overlap. A sentence ends with ``.``, ``!``, ``?`` or ``…`` after a word of four letters or more, so ``Mr.`` ends none.

*Last word*, after LAMBADA (Paperno et al. 2016): the word is to be predicted from all that stands before it. Like most
of LAMBADA's it appears in the passage before, whatever its case, so that it can be known from the passage. Unlike
LAMBADA's it need not end a sentence, and nobody has read the passages: it is the first word that serves, with MIN_WORDS
to MAX_WORDS words before it and MIN_LETTERS letters or more, which leaves out the commonest words of English.

*Multiple choice*, after the story cloze test (Mostafazadeh et al. 2016): the passage is cut between two words, at the
first single space after MIN_WORDS to MAX_WORDS words, and the next CHOICE_WORDS words of the text stand among as many
words from each of three other places, which follow other passages that are cut likewise.

Everything that is drawn comes from one seed. Of a text of any size only as many passages are held as are asked for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

MIN_WORDS, MAX_WORDS = 30, 50
MIN_LETTERS = 4
CHOICES, CHOICE_WORDS = 4, 10

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[^\W\d_]{4}[.!?…]+[\"'”’»)\]]*(?=\s)")

Item = TypeVar("Item")


@dataclass(frozen=True)
class LastWord:
    """A passage without its last word, and that word with the space before it."""

    passage: str
    last_word: str


@dataclass(frozen=True)
class MultipleChoice:
    """A passage, continuations of it, each with the space before it, and the index of the one that follows."""

    passage: str
    choices: list[str]
    answer: int


def make_tasks(texts: Iterable[str], *, items: int, seed: int) -> tuple[list[LastWord], list[MultipleChoice]]:
    """Draws passages for both tasks from all that the texts offer, each as likely as the others.

    Args:
        texts: The held-out documents; read once, one after the other.
        items: Most items of each task. A short text yields fewer, and one without sentences of words, none.
        seed: Of what is drawn.

    Returns:
        The items of either task, in the order of the text.
    """
    last_words = _Draw[LastWord](items, seed)
    followed = _Draw[tuple[str, str]](items, seed)
    for text in texts:
        starts = _sentence_starts(text)
        last_words.offer(_last_words(text, starts))
        followed.offer(_followed(text, starts))
    return last_words.drawn(), _multiple_choice(followed.drawn(), seed)


def _sentence_starts(text: str) -> list[int]:
    """Where the sentences of a text begin."""
    ends = (match.end() for match in _SENTENCE_END.finditer(text))
    return [start for end in (0, *ends) if (start := _skip_space(text, end)) < len(text)]


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _last_words(text: str, starts: list[int]) -> Iterator[LastWord]:
    done = 0
    for start in starts:
        if start >= done and (end := _known_word(text, start)) is not None:
            space, done = end
            yield LastWord(text[start:space], text[space:done])


def _known_word(text: str, start: int) -> tuple[int, int] | None:
    """The first word after ``start`` that serves: where the space before it is, and where it ends."""
    before: set[str] = set()
    for number, match in enumerate(islice(_WORD.finditer(text, start), MAX_WORDS + 1)):
        word, space = match.group().casefold(), match.start() - 1
        # One space alone before it, so that the word's tokens are the same with and without the passage.
        alone = space > start and text[space] == " " and not text[space - 1].isspace()
        if number >= MIN_WORDS and len(word) >= MIN_LETTERS and word in before and alone:
            return space, match.end()
        before.add(word)
    return None


def _followed(text: str, starts: list[int]) -> Iterator[tuple[str, str]]:
    """Passages, and for each the words that follow with the space before them."""
    done = 0
    for start in starts:
        if start >= done:
            words = list(islice(_WORD.finditer(text, start), MAX_WORDS + CHOICE_WORDS))
            for number in range(MIN_WORDS, len(words) - CHOICE_WORDS + 1):
                cut = words[number - 1].end()
                if text[cut : words[number].start()] == " ":
                    done = words[number + CHOICE_WORDS - 1].end()
                    yield text[start:cut], text[cut:done]
                    break


def _multiple_choice(followed: list[tuple[str, str]], seed: int) -> list[MultipleChoice]:
    """Puts each continuation among those of three other passages; none if there are too few that differ."""
    rng = random.Random(seed)
    continuations = sorted({continuation for _, continuation in followed})
    if len(continuations) < CHOICES:
        return []
    items = []
    for passage, continuation in followed:
        choices = rng.sample([other for other in continuations if other != continuation], CHOICES - 1)
        answer = rng.randrange(CHOICES)
        choices.insert(answer, continuation)
        items.append(MultipleChoice(passage, choices, answer))
    return items


class _Draw(Generic[Item]):
    """Draws at most ``size`` of a stream of items, each as likely as the others (Vitter 1985, Algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._rng = size, random.Random(seed)
        self._held: list[tuple[int, Item]] = []
        self._offered = 0

    def offer(self, items: Iterable[Item]) -> None:
        for item in items:
            place = self._offered if self._offered < self._size else self._rng.randrange(self._offered + 1)
            if place < self._size:
                self._held[place : place + 1] = [(self._offered, item)]
            self._offered += 1

    def drawn(self) -> list[Item]:
        return [item for _, item in sorted(self._held, key=lambda held: held[0])]
