"""The facts of each portion's documents, collected by Spark's workers into parquet files, and read again in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelcore.atomic import atomic_path
from modelcore.data.facts import COLUMNS, OVERLAP, facts_of
from modelcore.data.heldout import Overlap
from modelcore.spark.filters import NO_FILTERS, Filters
from modelcore.spark.portions import Portion
from modelcore.spark.tasks import same_hash
from modelcore.spark.traits import TraitsWriter

if TYPE_CHECKING:
    from pyspark.sql import Row, SparkSession

ROWS_AT_ONCE = 1 << 12
POSITIONS = 1 << 32  # a document's position: its portion's number times this, and its own in the portion

_TYPES = {"str": "string", "boolean": "bool", "Int64": "int64"}


@dataclass(frozen=True)
class CollectFacts:
    """A task that writes the facts of a portion's documents.

    Attributes:
        portion: The portion.
        text_field: Field or column that holds the text.
        folder: Where the file goes.
        lines: Of held-out documents, the files of :meth:`~modelcore.data.heldout.Overlap.of`'s arrays; None of others.
        filters: What documents are held against beside.
        traits: Where the outcome of that goes, or None where there is no filter.
    """

    portion: Portion
    text_field: str
    folder: Path
    lines: tuple[Path, Path] | None = None
    filters: Filters = NO_FILTERS
    traits: Path | None = None


@dataclass(frozen=True)
class Collected:
    """What such a task tells.

    Attributes:
        damaged: Sources that could not be read to their end.
        hash: What :func:`~modelcore.spark.tasks.same_hash` gave.
    """

    damaged: tuple[str, ...]
    hash: int


def collect_facts(task: CollectFacts) -> Collected:
    """Reads a portion and writes the facts of its documents, a row each, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    overlap = None
    if task.lines is not None:
        lines, shared = (np.load(file, mmap_mode="r", allow_pickle=False) for file in task.lines)
        overlap = Overlap.of(lines, [shared])
    names = [name for name in COLUMNS if name != "duplicate_of"]
    schema = pa.schema(
        [(name, _TYPES[COLUMNS[name]]) for name in names]
        + [(OVERLAP, "float64"), ("position", "int64"), ("digest", "int64")]
    )
    damaged: list[str] = []
    base = task.portion.number * POSITIONS

    traits = TraitsWriter(task.traits, task.portion, task.filters) if task.traits else None

    def rows() -> Iterator[dict[str, Any]]:
        for index, record in enumerate(task.portion.records(task.text_field)):
            if record.problem == "damaged":
                damaged.append(record.source)
            facts = facts_of(record, overlap)
            # The 64 bits that duplicates are found by (FirstDocuments), as a signed number, which is what Spark has.
            digest = int.from_bytes(bytes.fromhex(facts["sha256"][:16]), signed=True) if facts.get("sha256") else None
            if traits is not None and record.text is not None and not facts["blank"] and not facts["nul_bytes"]:
                traits.write(base + index, facts["document"], record.text)
            yield facts | {"position": base + index, "digest": digest}

    stream = rows()
    task.folder.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(task.folder / f"{task.portion.name}.parquet") as fresh,
        pq.ParquetWriter(fresh, schema, compression="zstd") as writer,
    ):
        while some := list(islice(stream, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
    if traits is not None:
        traits.close()
    return Collected(tuple(damaged), same_hash())


def read_facts(folder: Path, portion: Portion, *, with_overlap: bool = False) -> Iterator[dict[str, Any]]:
    """The facts of a portion's documents, in order, as :func:`modelcore.data.facts.facts_of` gave them."""
    import pyarrow.parquet as pq

    columns = [name for name in COLUMNS if name != "duplicate_of"] + [OVERLAP] * with_overlap
    with pq.ParquetFile(folder / f"{portion.name}.parquet") as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            yield from batch.to_pylist()


class SparkDuplicates:
    """Which earlier document had the same text, found by Spark among all facts: what FirstDocuments finds.

    Where that keeps every digest in one process, this sorts them in all, and on disk where memory is short.

    Args:
        spark: The session.
        folder: The facts' files, of every portion.
    """

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        facts = spark.read.parquet(folder.absolute().as_uri()).where("digest is not null")
        same_text = "over (partition by digest order by position)"
        copies = facts.selectExpr(
            "position", "document", f"first(document) {same_text} as same_as", f"row_number() {same_text} as copy"
        )
        self._rows: Iterator[Row] = copies.where("copy > 1").orderBy("position").toLocalIterator()
        self._next = next(self._rows, None)

    def add(self, documents: Sequence[str], digests: Sequence[str]) -> list[str | None]:
        """As :meth:`modelcore.data.duplicates.FirstDocuments.add`; told of all documents, in order."""
        found: list[str | None] = [None] * len(documents)
        for number, document in enumerate(documents):
            if self._next is not None and self._next.document == document:
                found[number] = self._next.same_as
                self._next = next(self._rows, None)
        return found


def read_all(folder: Path, portions: Sequence[Portion], *, with_overlap: bool = False) -> Iterator[dict[str, Any]]:
    """The facts of every portion's documents, in order."""
    return chain.from_iterable(read_facts(folder, portion, with_overlap=with_overlap) for portion in portions)
