"""Decoding while tokens arrive, never showing half a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelcore.tokenizers.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text as they come.

    A character outside the vocabulary is several byte pieces; its text is given out with its last byte. What
    :meth:`feed` gave so far and :meth:`flush` gives at the end are together exactly ``tokenizer.decode`` of all ids.

    Args:
        tokenizer: Whose ids they are.
        continues: Whether the ids go on from a text before them. Then a first space is part of the text, also where
            the tokenizer puts a space of its own before a whole text.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.adds_space and not continues

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these further ids complete; may be empty."""
        content = self._tokenizer.decode_bytes(ids)
        if self._at_start and content:
            content, self._at_start = content.removeprefix(b" "), False
        return self._utf8.decode(content)

    def flush(self) -> str:
        """The rest, when no more ids come: U+FFFD for a character left unfinished, otherwise nothing."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
