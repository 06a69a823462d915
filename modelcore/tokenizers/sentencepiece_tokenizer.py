"""SentencePiece models: our own, which lose nothing, and LLaMA's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from modelcore.errors import InputError
from modelcore.tokenizers.sentencepiece_file import (
    BYTE,
    NORMAL,
    SPACE_MARK,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    byte_of,
    parse_model,
)
from modelcore.tokenizers.tokenizer import SENTENCEPIECE_FILE, Tokenizer
from modelcore.tokenizers.words import SPECIAL_PIECES, split_words

UNK_ID, BOS_ID, EOS_ID, PAD_ID = range(4)
"""Ids of our own models' special pieces: Llama's for the first three, and a padding id."""

_split_at_spaces = re.compile(" *[^ ]+| +").findall


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, unigram or BPE, with byte fallback.

    Our own, made by ``train_sentencepiece``, give every text back as it was, U+2581 included: SentencePiece itself
    would read that character as a space, here it becomes its three bytes. Others, such as LLaMA's, give the ids that
    SentencePiece gives, and a text back except that U+2581 comes back as a space.

    Attributes:
        model: The model's vocabulary and settings.
        user_symbols: Texts that the model keeps whole wherever they stand.
        is_ours: Whether ``train_sentencepiece`` made it.

    Args:
        model_file: A ``.model`` file.

    Raises:
        InputError: If the file is missing, is no SentencePiece model, or is one that loses more of a text.
    """

    def __init__(self, model_file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model_file = Path(model_file)
        try:
            self._content = self.model_file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the tokenizer {self.model_file}: {error.strerror}") from error
        try:
            self.model = parse_model(self._content)
            self._processor = SentencePieceProcessor(model_proto=self._content)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{self.model_file} is no SentencePiece model, or a damaged one: {error}") from error
        if reason := _unsuitable(self.model, self._processor.eos_id()):
            raise InputError(f"{self.model_file} cannot be used: {reason}")
        pieces = self.model.pieces
        super().__init__([_piece_bytes(piece) for piece in pieces])
        self.digest = hashlib.sha256(self._content).hexdigest()
        self.unk_id, self.eos_id = self._processor.unk_id(), self._processor.eos_id()
        bos, pad = self._processor.bos_id(), self._processor.pad_id()
        self.bos_id, self.pad_id = bos if bos >= 0 else self.eos_id, pad if pad >= 0 else self.eos_id
        names = tuple(piece.text for piece in pieces[: len(SPECIAL_PIECES)])
        self.is_ours = names == SPECIAL_PIECES and not self.model.dummy_prefix and self.model.words_begin_with_space
        self.adds_bos, self.adds_space = not self.is_ours and bos >= 0, self.model.dummy_prefix
        self.user_symbols = tuple(piece.text for piece in pieces if piece.kind == USER_DEFINED)
        symbols = sorted(self.user_symbols, key=len, reverse=True)  # of several at one place, the longest counts
        self._split_at_symbols = re.compile(f"({'|'.join(map(re.escape, symbols))})").split if symbols else None
        ids = {piece.text: i for i, piece in enumerate(pieces)}
        self._symbol_ids = {symbol: [ids[symbol]] for symbol in self.user_symbols}
        self._mark = [ids[f"<0x{byte:02X}>"] for byte in SPACE_MARK.encode()]
        self._space = [ids[SPACE_MARK]] if SPACE_MARK in ids else self._mark
        # SentencePiece adds up unigram's scores in 32-bit floats, so cutting the text could decide another tie; our own
        # models' scores add up exactly, and BPE's are only compared.
        self._cuts = self.model.algorithm == "bpe" and not any(SPACE_MARK in p.text.lstrip(SPACE_MARK) for p in pieces)

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.model``."""
        (folder / SENTENCEPIECE_FILE).write_bytes(self._content)

    def name(self, token_id: int) -> str:
        """The piece as the vocabulary writes it."""
        return self.model.pieces[token_id].text

    def _words(self, text: str) -> Sequence[str]:
        if self.is_ours:
            if self._split_at_symbols is None:
                return split_words(text)
            words: list[str] = []
            for number, part in enumerate(self._split_at_symbols(text)):
                words += [part] if number % 2 else split_words(part)
            return words
        if not self._cuts:
            return [text]
        text = text.replace(SPACE_MARK, " ")
        return _split_at_spaces(" " + text if self.adds_space and text else text)

    def _encode_word(self, word: str) -> list[int]:
        if self.is_ours:
            return self._encode_exactly(word)
        if not self._cuts or not self.adds_space:
            ids: list[int] = self._processor.encode(word)
            return ids
        # Each word begins with a space, which SentencePiece adds itself.
        return self._processor.encode(word[1:]) if len(word) > 1 else self._space

    def _encode_exactly(self, word: str) -> list[int]:
        if word in self._symbol_ids:
            return self._symbol_ids[word]
        ids: list[int] = []
        for number, part in enumerate(word.split(SPACE_MARK)):
            if number:
                ids += self._mark
            if part:
                ids += self._processor.encode(part)
        return ids


def _piece_bytes(piece: Piece) -> bytes:
    if piece.kind == BYTE:
        return byte_of(piece.text)
    return piece.text.replace(SPACE_MARK, " ").encode() if piece.kind in (NORMAL, USER_DEFINED) else b""


def _unsuitable(model: SentencePieceModel, eos_id: int) -> str | None:
    """Why texts could not be encoded with a model and got back, or None."""
    if model.algorithm is None:
        return "it is neither unigram nor bpe"
    if not model.keeps_text:
        return "it changes the text (normalization or removal of spaces)"
    if not model.byte_fallback:
        return "it has no byte fallback, so characters outside its vocabulary would be lost"
    if eos_id < 0:
        return "it has no piece for the end of a text"
    return None
