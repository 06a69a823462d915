"""What the filters found out of each portion's documents, in parquet files beside those of the facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelcore.atomic import atomic_path
from modelcore.spark.filters import Filters
from modelcore.spark.near_duplicates import buckets, signature
from modelcore.spark.portions import Portion

_ROWS_AT_ONCE = 1 << 10  # of a KiB and more


class TraitsWriter:
    """Writes the traits of a portion's documents: the filter that removes each, or its signature; as they come.

    Args:
        folder: Where the file goes.
        portion: The portion.
        filters: What the documents are held against.
    """

    def __init__(self, folder: Path, portion: Portion, filters: Filters) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema(
            [
                ("position", "int64"),
                ("document", "string"),
                ("removed_by", "string"),
                ("detail", "string"),
                ("signature", pa.list_(pa.int64())),
                ("buckets", pa.list_(pa.int64())),
            ]
        )
        self._filters = filters
        folder.mkdir(parents=True, exist_ok=True)
        self._place = atomic_path(folder / f"{portion.name}.parquet")
        self._file = pq.ParquetWriter(self._place.__enter__(), self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write(self, position: int, document: str, text: str) -> None:
        """Adds one document."""
        row: dict[str, Any] = {"position": position, "document": document}
        if fault := self._filters.fault(text):
            row["removed_by"], row["detail"] = fault
        elif self._filters.near_duplicates:
            signed = signature(text)
            row |= {"signature": signed.tolist(), "buckets": buckets(signed)}
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Puts the file in its place."""
        self._flush()
        self._file.close()
        self._place.__exit__(None, None, None)

    def _flush(self) -> None:
        import pyarrow as pa

        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def removed_documents(traits: Path, near: Path, portion: Portion) -> dict[str, tuple[str, str]]:
    """The documents of a portion that filters remove: of each, the filter's name, and why, in words.

    Args:
        traits: Folder of what :class:`TraitsWriter` wrote; where there is none, nothing is removed.
        near: Folder of what :func:`modelcore.spark.near_duplicates.find_near_duplicates` wrote; there may be none.
        portion: The portion.
    """
    import pyarrow.parquet as pq

    removed: dict[str, tuple[str, str]] = {}
    file = traits / f"{portion.name}.parquet"
    if file.is_file():
        with pq.ParquetFile(file) as rows:
            for batch in rows.iter_batches(batch_size=_ROWS_AT_ONCE, columns=["document", "removed_by", "detail"]):
                removed |= {
                    row["document"]: (row["removed_by"], row["detail"])
                    for row in batch.to_pylist()
                    if row["removed_by"] is not None
                }
    for found in sorted((near / f"portion={portion.number}").glob("*.parquet")):
        for row in pq.ParquetFile(found).read().to_pylist():
            detail = f"{row['similarity']:.0%} the same as {row['same_as']}"
            removed[row["document"]] = ("near_duplicate", detail)
    return removed
