"""Text held out of training: choosing it, and finding out whether it leaked into what is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

ENOUGH_DOCUMENTS = 100  # from here on whole documents are held out, below it the end of each
LONG_LINE = 40  # characters; shorter lines (headings, "Yes.") are shared by texts that have nothing else in common


def choose_documents(digests: Iterable[str], fraction: float) -> set[str]:
    """The documents to hold out, by a rule that looks at each document alone.

    A document is held out if its SHA-256, read as a fraction of the largest possible one, lies below ``fraction``:
    so it stays held out, or not, when others come or go. At least one is chosen.

    Args:
        digests: SHA-256 of each document, in hexadecimal.
        fraction: About which part of the documents to hold out.
    """
    limit, smallest, chosen = int(fraction * 2**64), "", set()
    for digest in digests:
        if int(digest[:16], 16) < limit:
            chosen.add(digest)
        smallest = min(smallest or digest, digest)
    return chosen or {smallest} - {""}


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
    without such a line is compared as a whole. Kept in memory is one 64-bit hash for each line of the held-out text,
    nothing of the training text.

    Args:
        heldout: Texts of the held-out documents.
        training: Texts of the training documents.
    """

    def __init__(self, heldout: Iterable[str], training: Iterable[str]) -> None:
        wanted = {hash(line) for text in heldout for line in _lines(text)}
        self._shared: set[int] = set()
        for text in training:
            self._shared.update(number for line in _lines(text) if (number := hash(line)) in wanted)

    def fraction(self, text: str) -> float:
        """The part of a held-out document's lines that stands in the training corpus, 0 to 1."""
        found = [hash(line) in self._shared for line in _lines(text)]
        return sum(found) / len(found)


def _lines(text: str) -> Iterator[str]:
    long = [line for raw in text.split("\n") if len(line := raw.strip()) >= LONG_LINE]
    yield from long or [text.strip()]
