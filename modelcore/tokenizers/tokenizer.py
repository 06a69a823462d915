"""The tokenizer: text to ids and back, nothing lost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from modelcore.errors import InputError
from modelcore.tokenizers.sentencepiece_file import BYTE, NORMAL, SentencePieceModel, parse_model
from modelcore.tokenizers.words import SPECIAL_PIECES, split_words

MODEL_FILE = "tokenizer.model"
"""Name of the SentencePiece model in a folder that holds a tokenizer."""

SPACE_MARK = "\u2581"
"""The character that SentencePiece writes for a space."""

UNK_ID, BOS_ID, EOS_ID, PAD_ID = range(4)
"""Ids of the special pieces: Llama's for the first three, and a padding id of its own."""

# Words whose ids are remembered. English text repeats few words very often; the bound keeps memory under some 20 MiB.
_REMEMBERED_WORDS = 1 << 16
_LONGEST_REMEMBERED = 32


class Tokenizer:
    """A SentencePiece model (unigram or BPE, with byte fallback) made by ``train_sentencepiece``.

    ``decode(encode(text)) == text`` for every text that UTF-8 can write, U+2581 included: SentencePiece itself would
    read that character as a space, here it becomes its three bytes. A text never yields a special id: ``</s>`` in it is
    encoded as the four characters it is.

    Attributes:
        model_file: The model's file.
        digest: SHA-256 of that file, in hexadecimal.
        model: The model's vocabulary and settings.
        vocab_size: Number of ids, special ones and bytes included.
        bos_id: Id of the beginning of a document.
        eos_id: Id of the end of a document.
        pad_id: Id that fills up a batch.

    Raises:
        InputError: If the file is missing, is no SentencePiece model, or is one that does not keep the text as it is.
    """

    bos_id = BOS_ID
    eos_id = EOS_ID
    pad_id = PAD_ID

    def __init__(self, model_file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model_file = Path(model_file)
        try:
            data = self.model_file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the tokenizer {self.model_file}: {error.strerror}") from error
        try:
            self.model = parse_model(data)
            self._processor = SentencePieceProcessor(model_proto=data)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{self.model_file} is no SentencePiece model, or a damaged one: {error}") from error
        if reason := _unsuitable(self.model):
            raise InputError(f"{self.model_file} is not a tokenizer made by train-tokenizer: {reason}")
        self.digest = hashlib.sha256(data).hexdigest()
        self.vocab_size = len(self.model.pieces)
        self._bytes = [_piece_bytes(piece.text, piece.kind) for piece in self.model.pieces]
        self._space_mark = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        self._words: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Loads a ``tokenizer.model`` file, or the one in a folder.

        Raises:
            InputError: As the class.
        """
        path = Path(path)
        return cls(path / MODEL_FILE if path.is_dir() else path)

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text without lone surrogates.
            bos: Whether the id of a document's beginning comes first.
            eos: Whether the id of a document's end comes last.
        """
        ids = [BOS_ID] if bos else []
        remembered = self._words
        for word in split_words(text):
            known = remembered.get(word)
            ids += known if known is not None else self._encode_word(word)
        if eos:
            ids.append(EOS_ID)
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text, without special ids."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special ids have none, and bytes that form no character become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of some ids, possibly with half a character at either end.

        Raises:
            InputError: If an id is outside the vocabulary.
        """
        ids = ids if isinstance(ids, Sequence) else list(ids)
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise InputError(
                f"token id {wrong} is outside the vocabulary of {self.vocab_size} (0 to {self.vocab_size - 1})"
            )
        return b"".join([self._bytes[i] for i in ids])

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(word.split(SPACE_MARK)):
            if number:
                ids += self._space_mark
            if part:
                ids += self._processor.encode(part)
        if len(word) <= _LONGEST_REMEMBERED and len(self._words) < _REMEMBERED_WORDS:
            self._words[word] = ids
        return ids


def _piece_bytes(text: str, kind: int) -> bytes:
    if kind == NORMAL:
        return text.replace(SPACE_MARK, " ").encode()
    return bytes([int(text[3:5], 16)]) if kind == BYTE else b""


def _unsuitable(model: SentencePieceModel) -> str | None:
    """Why a model that SentencePiece can read is none of ours, or None."""
    if tuple(piece.text for piece in model.pieces[: len(SPECIAL_PIECES)]) != SPECIAL_PIECES:
        return f"its first pieces are not {' '.join(SPECIAL_PIECES)}"
    if model.algorithm is None:
        return "it is neither unigram nor bpe"
    if not model.lossless:
        return "it changes the text (normalization, dummy prefix or removal of spaces)"
    if not model.byte_fallback:
        return "it has no byte fallback"
    return None
