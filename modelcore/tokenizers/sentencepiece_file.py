"""Reads a SentencePiece model file: a protocol buffer message, of which we need a few fields.

SentencePiece's own message classes demand one particular version of the protobuf package, which other libraries
tie to another; the wire format is small enough to read directly.

Specification: sentencepiece_model.proto of SentencePiece, and the Protocol Buffers encoding guide.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["unigram", "bpe"]

# Field numbers of sentencepiece_model.proto.
_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_SPLIT_BY_WHITESPACE, _TRAINER_WHITESPACE_SUFFIX, _TRAINER_BYTE_FALLBACK = 3, 22, 24, 35
_NORMALIZER_CHARSMAP, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_REMOVE_SPACES, _NORMALIZER_ESCAPE = 2, 3, 4, 5

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces."""

SPACE_MARK = "\u2581"
"""The character that SentencePiece writes for a space."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary.

    Attributes:
        text: The piece, a space written as U+2581.
        score: Log probability (unigram) or minus the rank of the merge (BPE).
        kind: ``NORMAL``, ``UNKNOWN``, ``CONTROL``, ``USER_DEFINED``, ``UNUSED`` or ``BYTE``.
        score_offset: Where in the file the score's four bytes begin, or -1 where it has none.
    """

    text: str
    score: float
    kind: int
    score_offset: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model file says.

    Attributes:
        pieces: The vocabulary, by id.
        algorithm: ``unigram`` or ``bpe``, or None for SentencePiece's two others.
        keeps_text: Whether the text is taken as it is: no normalization, no removal of spaces.
        dummy_prefix: Whether a space is put before the text.
        words_begin_with_space: Whether the pieces were learned such that spaces stand only at their start.
        byte_fallback: Whether a character outside the vocabulary becomes its UTF-8 bytes.
    """

    pieces: list[Piece]
    algorithm: Algorithm | None
    keeps_text: bool
    dummy_prefix: bool
    words_begin_with_space: bool
    byte_fallback: bool


def byte_of(piece: str) -> bytes:
    """The byte that a piece of kind ``BYTE`` stands for: that of ``<0x0A>`` is a newline."""
    return bytes([int(piece[3:5], 16)])


def parse_model(data: bytes) -> SentencePieceModel:
    """Reads the content of a ``.model`` file.

    Raises:
        ValueError: If the content is no SentencePiece model.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | slice] = {}
    normalizer: dict[int, int | slice] = {}
    for field, value in _fields(data, slice(0, len(data))):
        if not isinstance(value, slice):
            continue
        if field == _MODEL_PIECES:
            pieces.append(_piece(data, value))
        elif field == _MODEL_TRAINER:
            trainer = dict(_fields(data, value))
        elif field == _MODEL_NORMALIZER:
            normalizer = dict(_fields(data, value))
    if not pieces:
        raise ValueError("it holds no pieces")
    algorithms: dict[int | slice, Algorithm] = {1: "unigram", 2: "bpe"}
    charsmap = normalizer.get(_NORMALIZER_CHARSMAP, slice(0, 0))
    keeps_text = (
        isinstance(charsmap, slice)
        and charsmap.stop == charsmap.start
        and normalizer.get(_NORMALIZER_REMOVE_SPACES, 1) == 0
        and normalizer.get(_NORMALIZER_ESCAPE, 1) == 1
    )
    return SentencePieceModel(
        pieces=pieces,
        algorithm=algorithms.get(trainer.get(_TRAINER_MODEL_TYPE, 1)),
        keeps_text=keeps_text,
        dummy_prefix=normalizer.get(_NORMALIZER_DUMMY_PREFIX, 1) == 1,
        words_begin_with_space=trainer.get(_TRAINER_SPLIT_BY_WHITESPACE, 1) == 1
        and trainer.get(_TRAINER_WHITESPACE_SUFFIX, 0) == 0,
        byte_fallback=trainer.get(_TRAINER_BYTE_FALLBACK, 0) == 1,
    )


def _piece(data: bytes, span: slice) -> Piece:
    text, score, kind, offset = "", 0.0, NORMAL, -1
    for field, value in _fields(data, span):
        if field == _PIECE_TEXT and isinstance(value, slice):
            text = data[value].decode("utf-8")
        elif field == _PIECE_SCORE and isinstance(value, slice):
            (score,), offset = struct.unpack("<f", data[value]), value.start
        elif field == _PIECE_TYPE and isinstance(value, int):
            kind = value
    return Piece(text, score, kind, offset)


def _fields(data: bytes, span: slice) -> Iterator[tuple[int, int | slice]]:
    """The message's fields: number, and value (whole numbers) or where the value's bytes are (everything else)."""
    position, end = span.start, span.stop
    while position < end:
        tag, position = _varint(data, position, end)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position, end)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = _varint(data, position, end)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"byte {position} begins a field of unknown kind {kind}")
        if position + length > end:
            raise ValueError(f"it ends inside a field at byte {position}")
        yield tag >> 3, slice(position, position + length)
        position += length


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The base-128 number at ``position``, and the position after it."""
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"it ends inside a number at byte {position}")
