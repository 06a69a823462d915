"""Parting a corpus: clean documents from bad ones, and text to train on from text held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modelcore.data.corpus import CorpusWriter, read_documents
from modelcore.data.facts import collect_facts, document_id
from modelcore.data.heldout import ENOUGH_DOCUMENTS, Overlap, choose_documents, cut_tail
from modelcore.data.quarantine import Quarantine
from modelcore.data.sources import Record, read_records
from modelcore.data.validation import Validator, Verdict

TRAINING, HELDOUT = "training corpus", "held-out text"
"""What the Data Docs call the two."""

Chosen = Literal["given", "whole documents", "end of each document"]


@dataclass(frozen=True)
class Separated:
    """What was written where.

    Attributes:
        documents: Documents read.
        train: The finished writer of the training documents: how many, how many bytes, their digest.
        heldout: The same for the held-out documents.
        chosen: How the held-out text was found.
        removed: What each filter left out of the clean documents, by the filter's name.
    """

    documents: int
    train: CorpusWriter
    heldout: CorpusWriter
    chosen: Chosen
    removed: dict[str, Removed] = field(default_factory=dict)


@dataclass
class Removed:
    """What a filter has left out.

    Attributes:
        documents: How many documents.
        bytes: UTF-8 bytes of their texts.
        samples: The first few: each one's name, why, and how its text begins.
    """

    documents: int = 0
    bytes: int = 0
    samples: list[dict[str, str]] = field(default_factory=list)

    _SAMPLES = 5

    def add(self, further: Removed) -> None:
        """Adds what comes after."""
        self.documents += further.documents
        self.bytes += further.bytes
        self.samples = [*self.samples, *further.samples][: self._SAMPLES]


def separate(
    corpus: Path,
    heldout: Path | None,
    *,
    text_field: str,
    heldout_fraction: float,
    validator: Validator,
    train_out: Path,
    heldout_out: Path,
    quarantine: Quarantine,
    scratch: Path,
) -> Separated:
    """Validates both texts and writes each document where it belongs.

    The corpus is read twice, once for the facts that the rules look at and once to part the clean from the bad: so no
    text is kept in memory, and of a clean document no more than some 30 bytes. Held-out text that is part of the corpus
    is set apart first and then validated like text that was given, so that the rule about contamination holds for both.

    Args:
        corpus: Text to train on.
        heldout: Text to evaluate on, or None to hold out part of the corpus.
        text_field: Field (.jsonl) or column (.parquet) that holds the text.
        heldout_fraction: How much of the corpus to hold out.
        validator: Judges the documents.
        train_out: An existing folder for the clean training documents.
        heldout_out: An existing folder for the clean held-out documents.
        quarantine: Takes the bad documents.
        scratch: An existing, empty folder.

    Raises:
        InputError: If a path holds nothing that can be read.
    """
    clean = 0

    def clean_documents() -> Iterator[tuple[str, str]]:
        nonlocal clean
        for facts in collect_facts(read_records(corpus, text_field)):
            bad = validator.validate(TRAINING, facts).faults
            kept = facts[~facts["document"].isin(list(bad))]
            clean += len(kept)
            yield from zip(kept["document"], kept["sha256"], strict=True)

    apart = choose_documents(clean_documents(), heldout_fraction)
    chosen: Chosen = "end of each document"
    if heldout is not None:
        chosen, apart = "given", set()
    elif clean >= ENOUGH_DOCUMENTS:
        chosen = "whole documents"
    verdict = validator.verdicts[TRAINING]
    with CorpusWriter(train_out) as train, CorpusWriter(scratch) as candidates:
        for record, text in _clean(read_records(corpus, text_field), verdict, "train", quarantine):
            if chosen == "end of each document":
                body, tail = cut_tail(text, heldout_fraction)
                train.write(body, record.source, record.row)
                if tail.strip():
                    candidates.write(tail, record.source, record.row)
            else:
                (candidates if document_id(record) in apart else train).write(text, record.source, record.row)

    def heldout_records() -> Iterator[Record]:
        if heldout is not None:
            yield from read_records(heldout, text_field)
        else:
            for text, source, row in read_documents(scratch):
                yield Record(source, row, len(text.encode()), text)

    overlap = Overlap(
        (record.text for record in heldout_records() if record.text is not None),
        (text for text, _, _ in read_documents(train_out)),
    )
    for facts in collect_facts(heldout_records(), overlap):
        validator.validate(HELDOUT, facts)
    with CorpusWriter(heldout_out) as held:
        for record, text in _clean(heldout_records(), validator.verdicts[HELDOUT], "heldout", quarantine):
            held.write(text, record.source, record.row)
    documents = verdict.documents + (validator.verdicts[HELDOUT].documents if heldout is not None else 0)
    return Separated(documents, train, held, chosen)


def _clean(
    records: Iterator[Record], verdict: Verdict, part: str, quarantine: Quarantine
) -> Iterator[tuple[Record, str]]:
    """The clean records with their texts; the others go to the quarantine."""
    for record in records:
        faults = verdict.faults.get(document_id(record), [])
        if record.text is None or faults:
            quarantine.write(part, record, faults)
        else:
            yield record, record.text
