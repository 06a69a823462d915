"""Parting a corpus on Spark: what :func:`modelcore.data.separation.separate` does, on many parts at a time.

Spark's workers read, measure and part the documents; they leave files, in a folder that driver and workers share, and
tell the driver little more than that they are there. The driver holds the facts, in order, against the same suite of
expectations in the same tables, and joins the workers' files in order with the same writers. So what it writes is, byte
for byte, what the single-machine stage writes.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelcore.atomic import atomic_directory, atomic_path
from modelcore.data.corpus import CorpusWriter, read_documents
from modelcore.data.facts import fact_tables
from modelcore.data.heldout import ENOUGH_DOCUMENTS, cut_tail, distinct_lines, is_chosen, shared_lines
from modelcore.data.quarantine import Quarantine
from modelcore.data.separation import HELDOUT, TRAINING, Chosen, Removed, Separated
from modelcore.data.sources import PREVIEW_CHARACTERS
from modelcore.data.validation import Fault, Validator
from modelcore.spark.facts import POSITIONS, CollectFacts, SparkDuplicates, collect_facts, read_all, read_facts
from modelcore.spark.filters import NO_FILTERS, Filters
from modelcore.spark.near_duplicates import find_near_duplicates
from modelcore.spark.portions import PORTION_BYTES, Places, Portion, cut_corpus
from modelcore.spark.session import session
from modelcore.spark.tasks import run_tasks, same_hash
from modelcore.spark.traits import removed_documents

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TRAITS, NEAR = "traits", "near"


@dataclass(frozen=True)
class HoldOut:
    """Which documents of the corpus are held out.

    Attributes:
        chosen: How; ``given``: none.
        fraction: How much.
        nearest: Name of the document to hold out where ``fraction`` chooses none; empty where it chooses one.
    """

    chosen: Chosen
    fraction: float
    nearest: str = ""


@dataclass(frozen=True)
class Part:
    """A task that parts a portion's documents.

    Attributes:
        portion: The portion.
        part: ``train`` or ``heldout``, for the quarantine.
        text_field: Field or column that holds the text.
        facts: Folder of the facts.
        out: Folder whose subfolders ``clean``, ``candidates`` and ``quarantine`` get one a portion.
        faults: The faults of its bad documents, by name.
        hold_out: What becomes a candidate.
        traits: Folder of what the filters found out.
        near: Folder of what they found out by comparing documents.
    """

    portion: Portion
    part: str
    text_field: str
    facts: Path
    out: Path
    hold_out: HoldOut
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    traits: Path = Path()
    near: Path = Path()


def part_documents(task: Part) -> dict[str, Removed]:
    """Writes the clean documents of a portion, those that may be held out, and the bad ones, where each belongs.

    Returns:
        What filters have left out, by the filter's name.
    """
    left_out: dict[str, Removed] = {}
    to_remove = removed_documents(task.traits, task.near, task.portion)
    rule, name = task.hold_out, task.portion.name
    records = task.portion.records(task.text_field)
    with (
        atomic_directory(task.out / "clean" / name) as clean_folder,
        atomic_directory(task.out / "candidates" / name) as candidates_folder,
        atomic_directory(task.out / "quarantine" / name) as quarantine_folder,
        CorpusWriter(clean_folder) as clean,
        CorpusWriter(candidates_folder) as candidates,
        Quarantine(quarantine_folder) as quarantine,
    ):
        for record, facts in zip(records, read_facts(task.facts, task.portion), strict=True):
            document, text = facts["document"], record.text
            faults = task.faults.get(document, [])
            if text is None or faults:
                quarantine.write(task.part, record, faults)
            elif document in to_remove:
                by, detail = to_remove[document]
                sample = {"document": document, "detail": detail, "preview": text[:PREVIEW_CHARACTERS]}
                left_out.setdefault(by, Removed()).add(Removed(1, record.size, [sample]))
            elif rule.chosen == "end of each document":
                body, tail = cut_tail(text, rule.fraction)
                clean.write(body, record.source, record.row)
                if tail.strip():
                    candidates.write(tail, record.source, record.row)
            else:
                apart = rule.chosen == "whole documents" and (
                    is_chosen(facts["sha256"], rule.fraction) or document == rule.nearest
                )
                (candidates if apart else clean).write(text, record.source, record.row)
    return left_out


@dataclass(frozen=True)
class HashLines:
    """A task that collects the lines of a portion of held-out text into a .npy file of ``folder``."""

    portion: Portion
    text_field: str
    folder: Path


def hash_lines(task: HashLines) -> int:
    """Writes the different lines of a portion's documents; returns what tells whether hashes can be compared."""
    records = task.portion.records(task.text_field)
    _save(task.folder / f"{task.portion.name}.npy", distinct_lines(r.text for r in records if r.text is not None))
    return same_hash()


@dataclass(frozen=True)
class FindLines:
    """A task that finds which of the held-out ``lines`` a folder of training documents has, into a file ``out``."""

    documents: Path
    lines: Path
    out: Path


def find_lines(task: FindLines) -> int:
    """Writes one bool a line; returns what tells whether hashes can be compared."""
    lines = np.load(task.lines, mmap_mode="r", allow_pickle=False)
    _save(task.out, shared_lines(lines, (text for text, _, _ in read_documents(task.documents))))
    return same_hash()


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
    filters: Filters = NO_FILTERS,
    portion_bytes: int = PORTION_BYTES,
) -> Separated:
    """Validates both texts and writes each document where it belongs, as the single-machine function does.

    Filters, where there are any, look at the clean documents of the corpus, before some of them are held out; text that
    is given to evaluate on they leave as it is.

    Args:
        corpus: Text to train on.
        heldout: Text to evaluate on, or None to hold out part of the corpus.
        text_field: Field (.jsonl) or column (.parquet) that holds the text.
        heldout_fraction: How much of the corpus to hold out.
        validator: Judges the documents.
        train_out: An existing folder for the clean training documents.
        heldout_out: An existing folder for the clean held-out documents.
        quarantine: Takes the bad documents.
        scratch: An existing, empty folder that driver and workers share, with room for the corpus, compressed.
        filters: What to leave out of the clean documents of the corpus.
        portion_bytes: About how much text a task reads.

    Raises:
        InputError: If a path holds nothing that can be read, or Java is missing.
    """
    with session("validate_data", scratch) as spark:
        portions = _collect(spark, corpus, text_field, scratch / "train", portion_bytes, filters=filters)
        if filters.near_duplicates:
            find_near_duplicates(
                spark, scratch / "train" / TRAITS, scratch / "train" / NEAR, filters.near_duplicates, POSITIONS
            )
        rule = _validate_training(
            spark, portions, scratch / "train", validator, heldout_fraction, given=heldout is not None
        )
        verdict = validator.verdicts[TRAINING]
        left_out = _part(spark, "train", portions, text_field, scratch / "train", rule, verdict.faults, portions)
        removed = {name: left_out.get(name, Removed()) for name in filters.asked_names}
        with CorpusWriter(train_out) as train:
            _join(train, scratch / "train", portions, quarantine)
        if heldout is not None:
            candidates = cut_corpus(spark, heldout, portion_bytes=portion_bytes)
        else:
            candidates = [
                Portion(portion.number, written=scratch / "train" / "candidates" / portion.name) for portion in portions
            ]
        lines = _find_overlap(spark, candidates, portions, text_field, scratch)
        if heldout is not None:
            candidates = _collect(spark, heldout, text_field, scratch / "heldout", portion_bytes, lines)
        else:
            _collect_from(spark, candidates, text_field, scratch / "heldout", lines)
        duplicates = SparkDuplicates(spark, scratch / "heldout" / "facts")
        for facts in fact_tables(
            read_all(scratch / "heldout" / "facts", candidates, with_overlap=True), duplicates, with_overlap=True
        ):
            validator.validate(HELDOUT, facts)
        faults = validator.verdicts[HELDOUT].faults
        everything = HoldOut("given", heldout_fraction)
        sources = portions if heldout is None else candidates
        _part(spark, "heldout", candidates, text_field, scratch / "heldout", everything, faults, sources)
        with CorpusWriter(heldout_out) as held:
            _join(held, scratch / "heldout", candidates, quarantine)
    documents = verdict.documents + (validator.verdicts[HELDOUT].documents if heldout is not None else 0)
    return Separated(documents, train, held, rule.chosen, removed)


def _collect(
    spark: SparkSession,
    corpus: Path,
    text_field: str,
    work: Path,
    portion_bytes: int,
    lines: tuple[Path, Path] | None = None,
    filters: Filters = NO_FILTERS,
) -> list[Portion]:
    """Cuts a corpus and collects its facts; a file of several portions that turns out damaged, as one piece.

    Only so does reading it end, as a reader of all of it does, at the damage.
    """
    whole: frozenset[str] = frozenset()
    while True:
        portions = cut_corpus(spark, corpus, whole, portion_bytes)
        damaged = _collect_from(spark, portions, text_field, work, lines, filters)
        pieces = itertools.groupby(piece.source for portion in portions for piece in portion.pieces)
        in_parts = damaged & {source for source, of_file in pieces if len(list(of_file)) > 1}
        if not in_parts:
            return portions
        whole |= in_parts
        for folder in ("facts", TRAITS):
            shutil.rmtree(work / folder, ignore_errors=True)


def _collect_from(
    spark: SparkSession,
    portions: Sequence[Portion],
    text_field: str,
    work: Path,
    lines: tuple[Path, Path] | None,
    filters: Filters = NO_FILTERS,
) -> set[str]:
    """Collects the facts of portions; returns the sources that are damaged."""
    traits = work / TRAITS if filters else None
    tasks = [CollectFacts(portion, text_field, work / "facts", lines, filters, traits) for portion in portions]
    found = run_tasks(spark, "collect facts", collect_facts, tasks)
    if lines is not None:
        _check_hashes(collected.hash for collected in found)
    return {source for collected in found for source in collected.damaged}


def _validate_training(
    spark: SparkSession,
    portions: Sequence[Portion],
    work: Path,
    validator: Validator,
    fraction: float,
    *,
    given: bool,
) -> HoldOut:
    """Holds the facts of the training corpus against the rules; tells which of its documents to hold out."""
    clean, any_chosen, nearest = 0, False, ("", "")
    duplicates = SparkDuplicates(spark, work / "facts")
    removed: set[str] = set()

    def rows() -> Iterator[dict[str, Any]]:
        for portion in portions:
            removed.update(removed_documents(work / TRAITS, work / NEAR, portion))
            yield from read_facts(work / "facts", portion)

    for facts in fact_tables(rows(), duplicates, with_overlap=False):
        bad = validator.validate(TRAINING, facts).faults
        kept = facts[~facts["document"].isin([*bad, *removed])]
        removed.difference_update(facts["document"])
        clean += len(kept)
        for document, digest in zip(kept["document"], kept["sha256"], strict=True):
            any_chosen = any_chosen or is_chosen(digest, fraction)
            if not nearest[0] or digest < nearest[0]:
                nearest = digest, document
    if given:
        return HoldOut("given", fraction)
    if clean >= ENOUGH_DOCUMENTS:
        return HoldOut("whole documents", fraction, "" if any_chosen else nearest[1])
    return HoldOut("end of each document", fraction)


def _part(
    spark: SparkSession,
    part: str,
    portions: Sequence[Portion],
    text_field: str,
    work: Path,
    rule: HoldOut,
    faults: dict[str, list[Fault]],
    sources: Sequence[Portion],
) -> dict[str, Removed]:
    """Parts the documents of portions, of which ``sources`` tell where they come from; returns what filters left out.

    Each task is told of the bad ones among its own.
    """
    places = Places(sources)
    bad: dict[int, dict[str, list[Fault]]] = {}
    for document, of_document in faults.items():
        bad.setdefault(places.portion_of(document), {})[document] = of_document
    tasks = [
        Part(
            portion,
            part,
            text_field,
            facts=work / "facts",
            out=work,
            hold_out=rule,
            faults=bad.get(portion.number, {}),
            traits=work / TRAITS,
            near=work / NEAR,
        )
        for portion in portions
    ]
    left_out: dict[str, Removed] = {}
    for of_portion in run_tasks(spark, f"part {part}", part_documents, tasks):
        for name, removed in of_portion.items():
            left_out.setdefault(name, Removed()).add(removed)
    return left_out


def _join(writer: CorpusWriter, work: Path, portions: Sequence[Portion], quarantine: Quarantine) -> None:
    """Joins what the tasks wrote, in order."""
    for portion in portions:
        quarantine.take(work / "quarantine" / portion.name)
        for text, source, row in read_documents(work / "clean" / portion.name):
            writer.write(text, source, row)


def _find_overlap(
    spark: SparkSession, heldout: Sequence[Portion], training: Sequence[Portion], text_field: str, scratch: Path
) -> tuple[Path, Path]:
    """Finds which lines of the held-out text stand in the training text; returns the files of both arrays."""
    folder = scratch / "lines"
    hashes = run_tasks(
        spark, "read held-out lines", hash_lines, [HashLines(portion, text_field, folder) for portion in heldout]
    )
    lines = np.empty(0, dtype=np.int64)
    for portion in heldout:
        lines = np.union1d(lines, np.load(folder / f"{portion.name}.npy", allow_pickle=False))
    _save(scratch / "lines.npy", lines)
    found = scratch / "found"
    tasks = [
        FindLines(scratch / "train" / "clean" / portion.name, scratch / "lines.npy", found / f"{portion.name}.npy")
        for portion in training
    ]
    _check_hashes([*hashes, *run_tasks(spark, "find held-out lines", find_lines, tasks)])
    shared = np.zeros(len(lines), dtype=bool)
    for task in tasks:
        shared |= np.load(task.out, allow_pickle=False)
    _save(scratch / "shared.npy", shared)
    return scratch / "lines.npy", scratch / "shared.npy"


def _check_hashes(hashes: Iterator[int] | Sequence[int]) -> None:
    """Makes sure that lines could be compared by what Python's ``hash`` gave in different processes."""
    if len(set(hashes)) > 1:
        raise RuntimeError("Spark's workers do not share PYTHONHASHSEED or Python's version; give all the same image")


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as fresh, open(fresh, "wb") as file:
        np.save(file, array, allow_pickle=False)
