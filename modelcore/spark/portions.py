"""Cutting a corpus into portions of bounded size that can be read one without the others.

A .parquet file is cut between row groups, a .jsonl file between lines, and a .txt file where the reader would begin a
new record. A compressed file has no place to begin in the middle, so it stays whole: one large one is read by one task.
Small files share a portion.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from modelcore.data.corpus import read_documents
from modelcore.data.facts import document_source
from modelcore.data.sources import (
    MAX_DOCUMENT_BYTES,
    Piece,
    Record,
    corpus_files,
    file_format,
    read_piece,
    source_name,
)
from modelcore.spark.tasks import run_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PORTION_BYTES = 32 << 20
MOST_PORTIONS = 20_000  # of a larger corpus each portion is larger
FILE_BYTES = 1 << 12  # what opening a file counts, so that a portion has no more than some thousand
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Portion:
    """What one task reads: pieces of files one after another, or documents that an earlier task has written.

    Attributes:
        number: Its place among the portions, from 0.
        pieces: The pieces.
        written: The folder of documents instead, or None.
    """

    number: int
    pieces: tuple[Piece, ...] = ()
    written: Path | None = None

    def records(self, text_field: str) -> Iterator[Record]:
        """Its records, in order."""
        for piece in self.pieces:
            yield from read_piece(piece, text_field)
        if self.written is not None:
            for text, source, row in read_documents(self.written):
                yield Record(source, row, len(text.encode()), text)

    @property
    def name(self) -> str:
        """A name for files about this portion; sorted by it they are in order."""
        return f"{self.number:06d}"


class Places:
    """Which portion a document of the corpus is in.

    Args:
        portions: All of them.
    """

    def __init__(self, portions: Sequence[Portion]) -> None:
        self._rows: dict[str, list[int]] = {}
        self._numbers: dict[str, list[int]] = {}
        for portion in portions:
            for piece in portion.pieces:
                source = document_source(piece.source)
                self._rows.setdefault(source, []).append(piece.row)
                self._numbers.setdefault(source, []).append(portion.number)

    def portion_of(self, document: str) -> int:
        """The number of the portion with the document of that name, ``source:row``."""
        source, _, row = document.rpartition(":")
        return self._numbers[source][bisect_right(self._rows[source], int(row)) - 1]


def cut_corpus(
    spark: SparkSession, corpus: Path, whole: frozenset[str] = frozenset(), portion_bytes: int = PORTION_BYTES
) -> list[Portion]:
    """Cuts a corpus into portions.

    Args:
        spark: Counts the lines of large files, which decide the rows of what follows.
        corpus: A file or a folder.
        whole: Sources that are to stay in one piece.
        portion_bytes: About how large a portion is to be.

    Raises:
        InputError: As :func:`modelcore.data.sources.corpus_files` does.
    """
    files = corpus_files(corpus)
    sizes = [file.stat().st_size for file in files]
    portion_bytes = max(portion_bytes, sum(sizes) // MOST_PORTIONS)
    cut: list[list[Piece]] = []
    for file, size in zip(files, sizes, strict=True):
        piece = Piece(file, source_name(corpus, file))
        fits = size <= portion_bytes or piece.source in whole
        cut.append([piece] if fits else _cut_file(piece, size, portion_bytes))
    cut = _numbered(spark, cut)
    portions: list[Portion] = []
    pieces: list[Piece] = []
    room = portion_bytes
    for size, of_file in zip(sizes, cut, strict=True):
        for piece in of_file:
            taken = FILE_BYTES + size // len(of_file)
            if pieces and taken > room:
                portions.append(Portion(len(portions), tuple(pieces)))
                pieces, room = [], portion_bytes
            pieces.append(piece)
            room -= taken
    return [*portions, Portion(len(portions), tuple(pieces))]


def _cut_file(whole: Piece, size: int, portion_bytes: int) -> list[Piece]:
    """The pieces of a large file; of text their rows are not known yet."""
    match file_format(whole.file), whole.file.suffix.lower():
        case ".parquet", _:
            return _cut_parquet(whole, portion_bytes)
        case ".txt", ".txt":
            with open(whole.file, "rb") as handle:
                return _between(whole, _txt_cuts(handle, size, portion_bytes))
        case ".jsonl", ".jsonl":
            with open(whole.file, "rb") as handle:
                return _between(whole, _line_cuts(handle, size, portion_bytes))
    return [whole]


def _between(whole: Piece, cuts: Iterator[int]) -> list[Piece]:
    begins = [0, *cuts]
    ends = [*begins[1:], None]
    return [replace(whole, begin=begin, end=end) for begin, end in zip(begins, ends, strict=True)]


def _cut_parquet(whole: Piece, portion_bytes: int) -> list[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pieces: list[Piece] = []
    with contextlib.suppress(OSError, pa.ArrowException):  # a damaged file stays whole, and whoever reads it will tell
        about = pq.read_metadata(whole.file)
        row, begin, taken = 1, 0, 0
        for group in range(about.num_row_groups):
            described = about.row_group(group)
            if taken and taken + described.total_byte_size > portion_bytes:
                pieces.append(replace(whole, row=row, begin=begin, end=group))
                row += sum(about.row_group(number).num_rows for number in range(begin, group))
                begin, taken = group, 0
            taken += described.total_byte_size
        return [*pieces, replace(whole, row=row, begin=begin)]
    return [whole]


def _line_cuts(handle: IO[bytes], size: int, portion_bytes: int) -> Iterator[int]:
    """Where lines begin, one about every ``portion_bytes``."""
    cut = 0
    while (cut := _next_line(handle, cut + portion_bytes)) < size:
        yield cut


def _txt_cuts(handle: IO[bytes], size: int, portion_bytes: int) -> Iterator[int]:
    """Where the reader of .txt files begins records, one about every ``portion_bytes``."""
    last = offset = 0
    while size - offset > MAX_DOCUMENT_BYTES:
        limit = offset + MAX_DOCUMENT_BYTES
        begin = _last_line(handle, offset, limit)
        offset = begin if begin > offset else _next_line(handle, limit)
        if offset - last >= portion_bytes and offset < size:
            yield offset
            last = offset


def _next_line(handle: IO[bytes], position: int) -> int:
    """The byte after the first end of a line at ``position`` or later; the file's size or more where there is none."""
    handle.seek(position)
    while block := handle.read(_BLOCK):
        if (found := block.find(b"\n")) >= 0:
            return position + found + 1
        position += len(block)
    return position


def _last_line(handle: IO[bytes], begin: int, end: int) -> int:
    """The byte after the last end of a line from ``begin`` up to and without ``end``; ``begin`` where there is none."""
    while end > begin:
        start = max(begin, end - _BLOCK)
        handle.seek(start)
        if (found := handle.read(end - start).rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return begin


def _numbered(spark: SparkSession, cut: list[list[Piece]]) -> list[list[Piece]]:
    """The pieces with their first rows, for which the lines of text before them are counted."""
    text = [
        piece for pieces in cut if len(pieces) > 1 and file_format(pieces[0].file) != ".parquet" for piece in pieces
    ]
    counts = iter(run_tasks(spark, "count lines", count_lines, text))
    numbered = []
    for pieces in cut:
        if len(pieces) > 1 and file_format(pieces[0].file) != ".parquet":
            row, fresh = 1, []
            for piece in pieces:
                fresh.append(replace(piece, row=row))
                row += next(counts)
            pieces = fresh
        numbered.append(pieces)
    return numbered


def count_lines(piece: Piece) -> int:
    """How many lines end in a piece of an uncompressed file."""
    lines, position = 0, piece.begin
    with open(piece.file, "rb") as handle:
        handle.seek(position)
        while piece.end is None or position < piece.end:
            block = handle.read(1 << 20 if piece.end is None else min(1 << 20, piece.end - position))
            if not block:
                break
            lines += block.count(b"\n")
            position += len(block)
    return lines
