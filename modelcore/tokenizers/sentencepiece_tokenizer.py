"""SentencePiece models: our own, which lose nothing, and LLaMA's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

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
from modelcore.tokenizers.tokenizer import SENTENCEPIECE_FILE, Ids, Tokenizer
from modelcore.tokenizers.words import LONGEST_WORD, SPECIAL_PIECES, split_segments, split_words

UNK_ID, BOS_ID, EOS_ID, PAD_ID = range(4)
"""Ids of our own models' special pieces: Llama's for the first three, and a padding id."""

_split_at_spaces = re.compile(" *[^ ]+| +").findall
_split_at_marks = re.compile(f"({SPACE_MARK})").split


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
        # SentencePiece finds a word's unigram ids in the time in which Python looks them up; for BPE's it takes longer.
        self.releases_gil = self.is_ours and self.model.algorithm == "unigram"
        self.adds_bos, self.adds_space = not self.is_ours and bos >= 0, self.model.dummy_prefix
        self.user_symbols = tuple(piece.text for piece in pieces if piece.kind == USER_DEFINED)
        symbols = sorted(self.user_symbols, key=len, reverse=True)  # of several at one place, the longest counts
        self._split_at_symbols = re.compile(f"({'|'.join(map(re.escape, symbols))})").split if symbols else None
        ids = {piece.text: i for i, piece in enumerate(pieces)}
        mark = [ids[f"<0x{byte:02X}>"] for byte in SPACE_MARK.encode()]
        self._space = [ids[SPACE_MARK]] if SPACE_MARK in ids else mark
        # The parts of a text whose ids we know better than SentencePiece, which takes the mark for a space.
        fixed = {symbol: [ids[symbol]] for symbol in self.user_symbols} | {SPACE_MARK: mark}
        self._fixed = {part: np.array(of_part, dtype=np.int32) for part, of_part in fixed.items()}
        # SentencePiece adds up unigram's scores in 32-bit floats, so cutting the text could decide another tie; our own
        # models' scores add up exactly, and BPE's are only compared.
        self._cuts = self.model.algorithm == "bpe" and not any(SPACE_MARK in p.text.lstrip(SPACE_MARK) for p in pieces)

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.model``."""
        (folder / SENTENCEPIECE_FILE).write_bytes(self._content)

    def name(self, token_id: int) -> str:
        """The piece as the vocabulary writes it."""
        return self.model.pieces[token_id].text

    def _encode_texts(self, texts: Sequence[str]) -> list[Ids]:
        if self.releases_gil:
            return self._encode_exactly(texts)
        return super()._encode_texts(texts)

    def _words(self, text: str) -> Sequence[str]:
        if self.is_ours:
            return _split_at_spaces(text)
        if not self._cuts:
            return [text]
        text = text.replace(SPACE_MARK, " ")
        return _split_at_spaces(" " + text if self.adds_space and text else text)

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int]
        if self.is_ours and (len(word) > LONGEST_WORD or "<" in word or SPACE_MARK in word or self.user_symbols):
            ids = self._encode_exactly([word])[0].tolist()
        elif self.is_ours or not self._cuts or not self.adds_space:
            ids = self._processor.encode(word)
        else:  # each word begins with a space, which SentencePiece adds itself
            ids = self._processor.encode(word[1:]) if len(word) > 1 else self._space
        return ids

    def _encode_exactly(self, texts: Sequence[str]) -> list[Ids]:
        """What our models make of each text, found out in one call of SentencePiece."""
        parts: list[str] = []
        ends = [0]
        for text in texts:
            parts += self._parts(text)
            ends.append(len(parts))
        found = self._processor.encode(parts, num_threads=1, return_type="numpy")  # int32, as SentencePiece has it
        ids = [np.empty(0, np.int32), *map(self._fixed.get, parts, found)]
        return [np.concatenate([ids[0], *ids[start + 1 : end + 1]]).view(np.uint32) for start, end in pairwise(ends)]

    def _parts(self, text: str) -> Sequence[str]:
        """Cuts a text into user symbols, U+2581, and segments without these."""
        parts: list[str] = []
        for number, part in enumerate(self._split_at_symbols(text) if self._split_at_symbols is not None else [text]):
            if number % 2:
                parts.append(part)
            elif SPACE_MARK in part:
                parts += [piece for word in split_words(part) for piece in _split_at_marks(word) if piece]
            else:
                parts += split_segments(part)
        return parts


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
