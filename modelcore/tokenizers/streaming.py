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
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these further ids complete; may be empty."""
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def flush(self) -> str:
        """The rest, when no more ids come: U+FFFD for a character left unfinished, otherwise nothing."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
