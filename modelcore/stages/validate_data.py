"""The stage validate_data: a corpus in, its clean documents out, for training and held out; bad ones in quarantine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from modelcore.atomic import atomic_directory, write_json, write_text
from modelcore.data.corpus import FILE as CORPUS_FILE
from modelcore.data.heldout import ENOUGH_DOCUMENTS
from modelcore.data.quarantine import FILE as QUARANTINE_FILE
from modelcore.data.quarantine import Quarantine
from modelcore.data.separation import Removed, Separated, separate
from modelcore.data.validation import Validator
from modelcore.data.validation_page import TITLE as PAGE_TITLE
from modelcore.data.validation_page import render
from modelcore.errors import InputError
from modelcore.stages.engine import Engine, check_engine
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Stage, StageSummary
from modelcore.stages.work import downloads, scratch_beside
from modelcore.storage import localize

logger = logging.getLogger(__name__)

TEXT_FIELD = "text"
HELDOUT_FRACTION = 0.05
MAX_BAD_FRACTION = 0.05
PAGE_FILE = "summary.html"
FILTERS_FILE = "filters.json"

CORPUS = Output("folder of clean documents", CORPUS_FILE)
QUARANTINE = Output("quarantine", QUARANTINE_FILE)
DOCS = Output(
    "validation report", PAGE_FILE, PAGE_TITLE, ("index.html", "expectations", "validations", "static", FILTERS_FILE)
)


def validate_data(
    *,
    corpus: str,
    heldout: str = "",
    train_out: Path | str,
    heldout_out: Path | str,
    quarantine_out: Path | str,
    docs_out: Path | str,
    text_field: str = TEXT_FIELD,
    heldout_fraction: float = HELDOUT_FRACTION,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    engine: Engine = "local",
    languages: str = "",
    quality: str = "none",
    near_duplicates: float = 0.0,
    summary: Path | str | None = None,
) -> StageSummary:
    """Validates a corpus and separates the clean documents from the bad, and training from held-out text.

    Args:
        corpus: Text to train on: a file, a folder or an ``s3://`` prefix of .txt, .jsonl or .parquet.
        heldout: Text to evaluate on, in the same forms. If empty, part of the corpus is held out: of 100 clean
            documents or more whole ones, chosen by a hash of their text; of fewer the end of each.
        train_out: Folder for the clean training documents, as parquet.
        heldout_out: Folder for the clean held-out documents, as parquet.
        quarantine_out: Folder for ``quarantine.jsonl``: source, row, reasons and a preview of each bad document.
        docs_out: Folder for the Data Docs (``index.html``) and a page that stands alone (``summary.html``).
        text_field: Field (.jsonl) or column (.parquet) that holds the text.
        heldout_fraction: How much to hold out where no ``heldout`` is given, between 0 and 1.
        max_bad_fraction: Largest part of the documents that may be bad, from 0 to 1.
        engine: Who does the work: ``local``, this process, or ``spark``; what is written is the same.
        languages: With Spark: ISO 639-1 codes of the languages to keep of the corpus, a comma between; empty: all.
        quality: With Spark: ``gopher`` leaves out English text that fails Gopher's rules.
        near_duplicates: With Spark: leaves out documents that share this part of their 5-word sequences with an earlier
            one, from 0.7 to 1; 0: none. What these three left out is told in the figures and in ``filters.json`` beside
            the Data Docs.
        summary: JSON file for the stage's summary, or None.

    Raises:
        InputError: If more documents are bad than allowed or none is clean (quarantine and Data Docs are written all
            the same), or if the corpus cannot be read at all.
    """
    outputs = {
        "train": Path(train_out),
        "heldout": Path(heldout_out),
        "quarantine": Path(quarantine_out),
        "docs": Path(docs_out),
    }
    parameters: dict[str, Any] = {
        "corpus": str(corpus),
        "heldout": str(heldout),
        "text_field": text_field,
        "heldout_fraction": heldout_fraction,
        "max_bad_fraction": max_bad_fraction,
    }
    filtered = bool(languages or quality != "none" or near_duplicates)
    if filtered:
        parameters |= {"languages": languages, "quality": quality, "near_duplicates": near_duplicates}
    written = {
        outputs["train"]: CORPUS,
        outputs["heldout"]: CORPUS,
        outputs["quarantine"]: QUARANTINE,
        outputs["docs"]: DOCS,
    }
    with (
        Stage("validate_data", parameters, outputs=written, summary=summary) as stage,
        scratch_beside(outputs["train"], "validate_data") as scratch,
        downloads(outputs["train"]) as downloaded,
    ):
        if not str(corpus):
            raise InputError("corpus is empty; give a file, a folder, or s3://bucket/prefix")
        if not 0 < heldout_fraction < 1:
            raise InputError(f"heldout_fraction={heldout_fraction} must lie between 0 and 1")
        if not 0 <= max_bad_fraction <= 1:
            raise InputError(f"max_bad_fraction={max_bad_fraction} must lie from 0 to 1")
        check_engine(engine)
        if filtered and engine != "spark":
            raise InputError(f"engine={engine!r} has no filters (languages, quality, near_duplicates); take 'spark'")
        separator: Callable[..., Separated] = separate
        if engine == "spark":
            from modelcore.spark.filters import Filters
            from modelcore.spark.separation import separate as separate_on_spark

            filters = Filters(languages, cast(Any, quality), near_duplicates)
            separator = partial(separate_on_spark, filters=filters)
        corpus_path = localize(corpus, downloaded / "corpus")
        heldout_path = localize(heldout, downloaded / "heldout") if heldout else None
        failure = None
        if not stage.restore(outputs, inputs=[path for path in (corpus_path, heldout_path) if path is not None]):
            found, failure = _validate(
                corpus_path,
                heldout_path,
                outputs,
                text_field=text_field,
                heldout_fraction=heldout_fraction,
                max_bad_fraction=max_bad_fraction,
                scratch=scratch,
                separator=separator,
            )
            stage.results.update(found)
            if failure is None:
                stage.keep(outputs)
        stage.run.log_path(outputs["docs"], "data_docs")
        stage.run.log_path(outputs["quarantine"], "quarantine")
        if failure is not None:
            raise InputError(failure)
        if stage.results["bad_rows"]:
            logger.warning(
                "refused=%d documents=%d: %s; see %s",
                stage.results["bad_rows"],
                stage.results["documents"],
                stage.results["refused"],
                outputs["quarantine"] / QUARANTINE_FILE,
            )
        for part, source, context in (("train", corpus, "training"), ("heldout", heldout or corpus, "evaluation")):
            stage.run.log_dataset(
                name=part,
                source=str(source),
                digest=stage.results[f"{part}_digest"],
                rows=stage.results[f"{part}_documents"],
                context=context,
            )
    return stage.summary


class _UnfitError(Exception):
    """The corpus was read to its end and found unfit; the message says why."""


def _validate(
    corpus: Path,
    heldout: Path | None,
    outputs: dict[str, Path],
    *,
    text_field: str,
    heldout_fraction: float,
    max_bad_fraction: float,
    scratch: Path,
    separator: Callable[..., Separated],
) -> tuple[dict[str, Any], str | None]:
    """Writes all outputs; or, where the corpus is unfit, quarantine and docs only. Returns figures, and why it is."""
    validator, results, failure = Validator(), dict[str, Any](), None
    removed: dict[str, Removed] = {}
    with (
        atomic_directory(outputs["docs"]) as docs,
        atomic_directory(outputs["quarantine"]) as quarantined,
        Quarantine(quarantined) as quarantine,
    ):
        try:  # an unfit corpus leaves the clean documents of an earlier run as they are
            with atomic_directory(outputs["train"]) as train, atomic_directory(outputs["heldout"]) as held:
                separated = separator(
                    corpus,
                    heldout,
                    text_field=text_field,
                    heldout_fraction=heldout_fraction,
                    validator=validator,
                    train_out=train,
                    heldout_out=held,
                    quarantine=quarantine,
                    scratch=scratch,
                )
                results, removed = _figures(separated, quarantine), separated.removed
                _judge(separated, quarantine, max_bad_fraction)
        except _UnfitError as error:
            failure = f"{error}; see {outputs['quarantine'] / QUARANTINE_FILE} and {outputs['docs'] / PAGE_FILE}"
        validator.write_docs(docs)
        if removed:
            write_json(docs / FILTERS_FILE, {name: asdict(of_filter) for name, of_filter in removed.items()})
        write_text(docs / PAGE_FILE, render(list(validator.verdicts.values()), results, failure))
    return results, failure


def _figures(separated: Separated, quarantine: Quarantine) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "documents": separated.documents,
        "bad_rows": quarantine.rows,
        "refused": quarantine.summary(),
        **{f"bad_{reason}": count for reason, count in sorted(quarantine.reasons.items())},
        "heldout_chosen": separated.chosen,
    }
    for name, removed in separated.removed.items():
        figures |= {f"removed_{name}_documents": removed.documents, f"removed_{name}_bytes": removed.bytes}
    for part, writer in (("train", separated.train), ("heldout", separated.heldout)):
        figures[f"{part}_documents"] = writer.documents
        figures[f"{part}_bytes"] = writer.bytes
        figures[f"{part}_digest"] = writer.digest
    return figures


def _judge(separated: Separated, quarantine: Quarantine, max_bad_fraction: float) -> None:
    counted = ", ".join(f"{count:,} {reason}" for reason, count in quarantine.reasons.most_common())
    bad = f"{quarantine.rows:,} of {separated.documents:,} documents are bad" + (f" ({counted})" if counted else "")
    if removed := ", ".join(f"{of.documents:,} by {name}" for name, of in separated.removed.items() if of.documents):
        bad += f", and filters left out {removed} ({FILTERS_FILE} tells why)"
    named = f": {quarantine.summary()}" if quarantine.rows else ""
    if not separated.documents:
        raise _UnfitError("the corpus holds no document: every file is empty")
    if quarantine.rows > max_bad_fraction * separated.documents:
        raise _UnfitError(f"{bad}, more than max_bad_fraction={max_bad_fraction:g}{named}")
    if not separated.train.documents:
        raise _UnfitError(f"no clean document is left to train on: {bad}{named}")
    if not separated.heldout.documents and quarantine.rows:
        raise _UnfitError(f"no clean text is left to hold out: {bad}{named}")
    if not separated.heldout.documents:
        raise _UnfitError(
            "the corpus is too small to hold out a part of it; give heldout, or longer documents, "
            f"or at least {ENOUGH_DOCUMENTS} of them"
        )
