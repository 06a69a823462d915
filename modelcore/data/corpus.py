"""Clean documents on disk: a folder with one parquet file of the columns text, source and row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FILE = "documents.parquet"
ROW_GROUP_BYTES = 4 << 20  # what a reader holds in memory at a time


class CorpusWriter:
    """Writes documents as they come, in row groups of bounded size; used as a context manager.

    Args:
        folder: An existing folder, best a temporary one that is renamed at the end.

    Attributes:
        documents: Documents written so far.
        bytes: UTF-8 bytes of their texts.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([("text", pa.large_string()), ("source", pa.string()), ("row", pa.int64())])
        self._file = pq.ParquetWriter(folder / FILE, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._pending = 0
        self._hash = hashlib.sha256()
        self.documents, self.bytes = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._file.close()

    @property
    def digest(self) -> str:
        """SHA-256 over the lengths and texts of the documents in order, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, text: str, source: str, row: int) -> None:
        """Adds one document; ``source`` and ``row`` say where it came from."""
        content = text.encode()
        self._hash.update(len(content).to_bytes(8, "little") + content)
        self.documents += 1
        self.bytes += len(content)
        self._rows.append({"text": text, "source": source, "row": row})
        self._pending += len(content)
        if self._pending >= ROW_GROUP_BYTES or len(self._rows) >= 1 << 16:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._pending = [], 0


def read_documents(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Text, source and row of each document that a :class:`CorpusWriter` wrote, in order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / FILE, buffer_size=1 << 16, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=64):
            columns = (batch.column(name).to_pylist() for name in ("text", "source", "row"))
            yield from zip(*columns, strict=True)
