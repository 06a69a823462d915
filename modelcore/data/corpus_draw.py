"""The files of a corpus from which its documents are drawn: all of them, or of a large one as many as tell what it is.

Files on S3 are fetched one at a time, and removed before the next: no more room is needed than for the largest.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelcore import storage
from modelcore.data.sources import Piece, Record, corpus_files, file_format, read_piece, source_name
from modelcore.errors import InputError

logger = logging.getLogger(__name__)

READ_BYTES = 1 << 30  # of files, compressed or not


@dataclass(frozen=True)
class DrawnFiles:
    """Files of a corpus.

    Attributes:
        addresses: A path or an ``s3://`` address of each, by the name that records have it by.
        found: How many files the corpus has.
    """

    addresses: dict[str, str]
    found: int

    def read(self, scratch: Path, text_field: str = "text") -> Iterator[Record]:
        """Every record of the files, those with problems included.

        Args:
            scratch: Folder for files from S3.
            text_field: The field of a JSON object, or the column of a parquet file, that holds the text.

        Raises:
            InputError: If S3 refuses, or a parquet file has no such column.
        """
        for name, address in self.addresses.items():
            fetched = scratch / "fetched"
            yield from read_piece(Piece(storage.localize(address, fetched), name), text_field)
            shutil.rmtree(fetched, ignore_errors=True)


def draw_files(corpus: str, *, read_bytes: int = READ_BYTES, seed: int = 0) -> DrawnFiles:
    """Draws files, each with the same chance, until they have ``read_bytes``; all where there are no more than that.

    Args:
        corpus: A file, a folder or an ``s3://`` prefix of .txt, .jsonl or .parquet.
        read_bytes: Bytes to read.
        seed: Of the draw.

    Raises:
        InputError: If there is nothing to read at ``corpus``, or S3 refuses.
    """
    if storage.is_remote(corpus):
        files = {name: file for name, file in storage.list_files(corpus).items() if _is_text(name)}
        if not files:
            raise InputError(f"{corpus} holds no text; .txt, .jsonl and .parquet are read")
    else:
        root = Path(corpus)
        files = {source_name(root, file): (str(file), file.stat().st_size) for file in corpus_files(root)}
    names = sorted(files)
    random.Random(seed).shuffle(names)
    drawn, size = list[str](), 0
    for name in names:
        if size >= read_bytes:
            break
        drawn.append(name)
        size += files[name][1]
    if len(drawn) < len(files):
        logger.info("corpus=%s files=%d read=%d bytes=%d", corpus, len(files), len(drawn), size)
    return DrawnFiles({name: files[name][0] for name in sorted(drawn)}, len(files))


def _is_text(name: str) -> bool:
    return file_format(Path(name)) is not None and not any(part.startswith(".") for part in Path(name).parts)
