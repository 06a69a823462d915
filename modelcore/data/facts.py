"""What is known of each document of a corpus: a table of facts, never of texts, that the expectations look at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

from modelcore.data.duplicates import FirstDocuments
from modelcore.data.heldout import Overlap
from modelcore.data.sources import Record
from modelcore.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

ROWS_AT_ONCE = 1 << 14
TABLE_ROWS = 1 << 16  # holding a table against the rules takes some 1 KiB a row

# Column and pandas type. A fact that a document with a problem does not have is missing (NA).
COLUMNS = {
    "document": "str",  # source:row
    "format": "str",  # "text", or what is wrong with the record
    "valid_utf8": "boolean",
    "bytes": "Int64",  # of the text, as UTF-8
    "nul_bytes": "Int64",
    "blank": "boolean",
    "sha256": "str",  # of the text without the white space around it
    "duplicate_of": "str",  # the first document with the same text
}
OVERLAP = "training_overlap"

_HTML_CHARACTERS = str.maketrans({character: f"%{ord(character):02X}" for character in "%<>&\"'"})


def document_id(record: Record) -> str:
    """How a document is named in the table, in Data Docs and in messages: ``source:row``.

    Characters that mean something in HTML are written as in a URL, because Data Docs put names into their pages as
    they are.
    """
    return f"{document_source(record.source)}:{record.row}"


def document_source(source: str) -> str:
    """How a file is named in the name of a document."""
    return source.translate(_HTML_CHARACTERS)


def collect_facts(records: Iterable[Record], overlap: Overlap | None = None) -> Iterator[pd.DataFrame]:
    """The facts of a stream of records, in tables of at most TABLE_ROWS rows: one at least, which may be empty.

    Args:
        records: What was read.
        overlap: For held-out documents, what of them also stands in the training corpus; adds the column
            ``training_overlap`` (0 to 1).

    Yields:
        One row a record, with the columns of COLUMNS.
    """
    rows = (facts_of(record, overlap) for record in records)
    yield from fact_tables(rows, FirstDocuments(), with_overlap=overlap is not None)


class Duplicates(Protocol):
    """Tells of documents, as they come, which earlier one had the same text."""

    def add(self, documents: Sequence[str], digests: Sequence[str]) -> list[str | None]:
        """As :meth:`modelcore.data.duplicates.FirstDocuments.add`."""


def fact_tables(
    facts: Iterable[dict[str, Any]], duplicates: Duplicates, *, with_overlap: bool
) -> Iterator[pd.DataFrame]:
    """Tables of at most TABLE_ROWS rows, one at least, which may be empty, of the facts of single documents.

    Args:
        facts: What :func:`facts_of` gave, in the documents' order.
        duplicates: Told of every document that has a text.
        with_overlap: Whether the facts are of held-out documents, with ``training_overlap``.
    """
    import pandas as pd

    types: dict[str, Any] = COLUMNS | ({OVERLAP: "Float64"} if with_overlap else {})
    stream = iter(facts)
    with Progress("validate", None, "document") as progress:
        first = next(stream, None)
        if first is None:
            yield pd.DataFrame(columns=list(types)).astype(types)
        while first is not None:
            of_table = islice(chain([first], stream), TABLE_ROWS)
            chunks = []
            while rows := list(islice(of_table, ROWS_AT_ONCE)):
                chunks.append(pd.DataFrame(rows, columns=list(types)).astype(types))
                progress.update(len(rows))
            table = pd.concat(chunks, ignore_index=True)
            with_text = table[table["sha256"].notna()]
            same = duplicates.add(with_text["document"].tolist(), with_text["sha256"].tolist())
            table["duplicate_of"] = pd.Series(same, index=with_text.index, dtype="str").reindex(table.index)
            yield table
            first = next(stream, None)


def facts_of(record: Record, overlap: Overlap | None = None) -> dict[str, Any]:
    """The facts of one document, by the names of COLUMNS, but for ``duplicate_of``; those that it has."""
    facts: dict[str, Any] = {"document": document_id(record)}
    text = record.text
    if text is None:
        facts["format"] = record.problem if record.problem in ("not_json", "no_text_field", "damaged") else "text"
        if record.problem == "not_utf8":
            facts["valid_utf8"] = False
        if record.problem == "too_long":
            facts["bytes"] = record.size
        return facts
    stripped = text.strip()
    facts |= {
        "format": "text",
        "valid_utf8": True,
        "bytes": record.size,
        "nul_bytes": text.count("\0"),
        "blank": not stripped,
        "sha256": hashlib.sha256(stripped.encode()).hexdigest() if stripped else None,
    }
    if overlap is not None and stripped:
        facts[OVERLAP] = overlap.fraction(text)
    return facts
