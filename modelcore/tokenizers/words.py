"""How text is cut into words before SentencePiece sees it.

A word is a run of spaces and what follows it up to the next space, so newlines lie within words. A piece of our
models has spaces at its start or nowhere, which means that no piece reaches over the edge of a word, and encoding
word by word gives what encoding the whole text would. It gives it more exactly: SentencePiece adds up scores in 32-bit
floats, and over a whole novel their rounding would decide between pieces.

Two cuts are there so that the Hugging Face export gives the same ids on every text:

* After a ``<`` that begins the name of a special or byte piece: ``<s>`` or ``<0x0A>`` in a text is text, but the
  export's unigram model would find the piece of that name.
* Within words longer than ``LONGEST_WORD``, so that the sum of a word's scores stays exact (see ``training.py``).

What is exact for so many characters of one word is so for several words that have no more together. Such a segment has
the ids of its words, and SentencePiece is called for some ninety of them at once.
"""

import re

LONGEST_WORD = 512
"""Most spaces, and most other characters, that a word holds; and most of both that a segment of words does."""

SPECIAL_PIECES = ("<unk>", "<s>", "</s>", "<pad>")
"""Names of the pieces that stand for no text, by id: unknown, begin and end of a document, padding."""

_NAME = "(?:" + "|".join(piece[1:] for piece in SPECIAL_PIECES) + "|0x[0-9A-F]{2}>)"

WORD_PATTERN = f" {{0,{LONGEST_WORD}}}(?:<(?={_NAME})|(?:[^ <]|<(?!{_NAME})){{1,{LONGEST_WORD}}})| {{1,{LONGEST_WORD}}}"
"""Matches one word; its matches cover every text. Means the same to Python's and to the tokenizers library's regex."""

split_words = re.compile(WORD_PATTERN).findall
"""Cuts a text into its words, nothing lost."""

_holds_name = re.compile(f"<{_NAME}").search
_split_segments = re.compile(f"(?s:.{{1,{LONGEST_WORD}}})(?:(?<! )(?= )|\\Z)|{WORD_PATTERN}").findall


def split_segments(text: str) -> list[str]:
    """Cuts a text at the edges of words into segments that have the ids of their words, nothing lost."""
    return split_words(text) if _holds_name(text) else _split_segments(text)
