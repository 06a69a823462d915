"""Which document had a text first, for as many documents as come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# One entry a text: the first 64 bits of its SHA-256, and the file and row of the document that had it first.
_ENTRY = np.dtype([("digest", "<u8"), ("source", "<u4"), ("row", "<i8")])

_Entries = npt.NDArray[np.void]


class FirstDocuments:
    """Remembers 20 bytes of each different text, and the names of the files.

    Texts are taken for equal if the first 64 bits of their SHA-256 are. Of a hundred million documents that are all
    different, the chance that two are taken for equal is 1 in 3,700 (n² / 2⁶⁵).
    """

    def __init__(self) -> None:
        self._sources: list[str] = []
        self._numbers: dict[str, int] = {}
        # Each sorted by digest and more than twice as long as the next: an entry is merged and looked for few times.
        self._runs: list[_Entries] = []

    def add(self, documents: Sequence[str], digests: Sequence[str]) -> list[str | None]:
        """Adds further documents; gives for each the first one that had its text, or None where it is the first.

        Args:
            documents: Their names, ``source:row``.
            digests: SHA-256 of each text, in hexadecimal.
        """
        entries = np.empty(len(documents), dtype=_ENTRY)
        for number, (document, digest) in enumerate(zip(documents, digests, strict=True)):
            source, _, row = document.rpartition(":")
            entries[number] = int(digest[:16], 16), self._number(source), int(row)
        _, first, number_of = np.unique(entries["digest"], return_index=True, return_inverse=True)
        texts = entries[first]  # one of each, by digest
        new = np.ones(len(texts), dtype=bool)
        for run in self._runs:
            place = np.minimum(run["digest"].searchsorted(texts["digest"]), len(run) - 1)
            known = run["digest"][place] == texts["digest"]
            texts[known], new[known] = run[place[known]], False
        self._remember(texts[new])
        is_first = new[number_of] & (first[number_of] == np.arange(len(documents)))
        named = (f"{self._sources[source]}:{row}" for _, source, row in texts[number_of[~is_first]].tolist())
        return [None if alone else next(named) for alone in is_first.tolist()]

    def _number(self, source: str) -> int:
        number = self._numbers.setdefault(source, len(self._sources))
        if number == len(self._sources):
            self._sources.append(source)
        return number

    def _remember(self, texts: _Entries) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(texts):
            texts = np.concatenate([self._runs.pop(), texts])
            texts = texts[texts["digest"].argsort(kind="stable")]
        if len(texts):
            self._runs.append(texts)
