"""Text held out of training: choosing it, and finding out whether it leaked into what is trained on."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

ENOUGH_DOCUMENTS = 100  # from here on whole documents are held out, below it the end of each
LONG_LINE = 40  # characters; shorter lines (headings, "Yes.") are shared by texts that have nothing else in common


def choose_documents(documents: Iterable[tuple[str, str]], fraction: float) -> set[str]:
    """The documents to hold out, by a rule that looks at each document alone.

    A document is held out if its SHA-256, read as a fraction of the largest possible one, lies below ``fraction``:
    so it stays held out, or not, when others come or go. At least one is chosen.

    Args:
        documents: Name of each document, and the SHA-256 of its text in hexadecimal.
        fraction: About which part of the documents to hold out.

    Returns:
        The names of those that are chosen.
    """
    chosen = set()
    nearest = ("", "")
    for name, digest in documents:
        if is_chosen(digest, fraction):
            chosen.add(name)
        if not nearest[0] or digest < nearest[0]:
            nearest = digest, name
    return chosen or {nearest[1]} - {""}


def is_chosen(digest: str, fraction: float) -> bool:
    """Whether the SHA-256 of a text, in hexadecimal, as a fraction of the largest possible one lies below another."""
    return int(digest[:16], 16) < int(fraction * 2**64)


def cut_tail(text: str, fraction: float) -> tuple[str, str]:
    """Cuts a document in two at the start of the line that leaves the second part nearest to ``fraction`` of it.

    Where that is the end (a document of one line, a title over one long paragraph) it stays whole, with an empty second
    part.
    """
    target = int(len(text) * (1 - fraction))
    before = text.rfind("\n", 0, target) + 1
    after = text.find("\n", target) + 1 or len(text)
    cut = before if before and target - before <= after - target else after
    return text[:cut], text[cut:]


class Overlap:
    """Which lines of held-out documents also stand in the training corpus.

    Lines are compared without the white space around them, and only those of LONG_LINE characters or more; a document
    without such a line is compared as a whole. Kept in memory are nine bytes for each line of the held-out text, and
    nothing of the training text.

    Args:
        heldout: Texts of the held-out documents.
        training: Texts of the training documents.
    """

    def __init__(self, heldout: Iterable[str], training: Iterable[str]) -> None:
        self._lines = distinct_lines(heldout)
        self._shared = self._found(training)

    @classmethod
    def of(cls, lines: npt.NDArray[np.int64], trainings: Iterable[npt.NDArray[np.bool_]]) -> Overlap:
        """The same, from what was found out in parts, by processes in which Python's ``hash`` gives the same.

        Args:
            lines: The union of what :func:`distinct_lines` gave, sorted.
            trainings: What :func:`shared_lines` gave of each part of the training documents.
        """
        overlap = cls((), ())
        overlap._lines, overlap._shared = lines, np.zeros(len(lines), dtype=bool)
        for shared in trainings:
            overlap._shared |= shared
        return overlap

    def _found(self, training: Iterable[str]) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(self._lines), dtype=bool)
        if len(self._lines):
            for text in training:
                hashes = _hashes(text)
                places = self._places(hashes)
                found[places[self._lines[places] == hashes]] = True
        return found

    def fraction(self, text: str) -> float:
        """The part of a held-out document's lines that stands in the training corpus, 0 to 1."""
        return float(self._shared[self._places(_hashes(text))].mean())

    def _places(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where among the held-out text's lines each hash is, if it is one of theirs."""
        places: npt.NDArray[np.int64] = np.minimum(self._lines.searchsorted(hashes), len(self._lines) - 1)
        return places


def shared_lines(lines: npt.NDArray[np.int64], training: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which of the held-out text's ``lines`` stand in some training documents."""
    return Overlap.of(lines, ())._found(training)


def distinct_lines(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """The different lines of some held-out documents, as Python's ``hash`` of each, sorted."""
    every = array("q")
    for text in texts:
        every.frombytes(_hashes(text).tobytes())
    return np.unique(np.frombuffer(every, dtype=np.int64))


def _hashes(text: str) -> npt.NDArray[np.int64]:
    lines = [line for line in map(str.strip, text.split("\n")) if len(line) >= LONG_LINE] or [text.strip()]
    return np.fromiter(map(hash, lines), dtype=np.int64, count=len(lines))
