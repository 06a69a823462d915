"""Validating and tokenizing in a Spark application of the cluster: the stages of that name, with ``engine="spark"``."""

from __future__ import annotations

from pathlib import Path

from modelcore.stages.stage import Scalar, StageSummary


def validate_data_spark(
    *,
    corpus: str,
    heldout: str = "",
    train_out: Path | str,
    heldout_out: Path | str,
    quarantine_out: Path | str,
    docs_out: Path | str,
    text_field: str = "text",
    heldout_fraction: float = 0.05,
    max_bad_fraction: float = 0.05,
    languages: str = "",
    quality: str = "none",
    near_duplicates: float = 0.0,
    executors: int = 2,
    image: str,
    summary: Path | str | None = None,
) -> StageSummary:
    """Validates a corpus, as :func:`modelcore.stages.validate_data.validate_data` does, on the executors of a job.

    Args:
        corpus: Text to train on: an ``s3://`` prefix, or a path in the workspace or of this process.
        heldout: Text to evaluate on; empty: split off.
        train_out: Folder for the clean training documents.
        heldout_out: Folder for the clean held-out documents.
        quarantine_out: Folder for the bad ones.
        docs_out: Folder for the Data Docs.
        text_field: Field or column that holds the text.
        heldout_fraction: How much to hold out.
        max_bad_fraction: Largest part of the documents that may be bad.
        languages: Languages to keep; empty: all.
        quality: ``none`` or ``gopher``.
        near_duplicates: From which similarity on to leave documents out; 0: none.
        executors: Executors of the application.
        image: What driver and executors run.
        summary: JSON file for the stage's summary, or None.

    Raises:
        InputError: If the application fails, is deleted by somebody else, or cannot be made.
    """
    from modelcore.cluster.spark_application import run_on_spark

    arguments: dict[str, Scalar] = {
        "text_field": text_field,
        "heldout_fraction": heldout_fraction,
        "max_bad_fraction": max_bad_fraction,
        "languages": languages,
        "quality": quality,
        "near_duplicates": near_duplicates,
    }
    outputs = {"train_out": train_out, "heldout_out": heldout_out, "quarantine_out": quarantine_out}
    inputs: dict[str, Path | str] = {"corpus": corpus}
    if heldout:
        inputs["heldout"] = heldout
    return run_on_spark(
        "validate_data",
        arguments,
        inputs=inputs,
        outputs={name: Path(path) for name, path in {**outputs, "docs_out": docs_out}.items()},
        executors=executors,
        image=image,
        summary=summary,
    )


def tokenize_corpus_spark(
    *,
    corpus: Path | str,
    heldout: Path | str,
    tokenizer: Path | str,
    out: Path | str,
    executors: int = 2,
    image: str,
    summary: Path | str | None = None,
) -> StageSummary:
    """Tokenizes, as :func:`modelcore.stages.tokenize_corpus.tokenize_corpus` does, on the executors of a job.

    Args:
        corpus: Training documents.
        heldout: Documents to evaluate on.
        tokenizer: A folder with a tokenizer.
        out: The token folder.
        executors: Executors of the application.
        image: What driver and executors run.
        summary: JSON file for the stage's summary, or None.

    Raises:
        InputError: If the application fails, is deleted by somebody else, or cannot be made.
    """
    from modelcore.cluster.spark_application import run_on_spark

    inputs = {"corpus": corpus, "heldout": heldout, "tokenizer": tokenizer}
    return run_on_spark(
        "tokenize_corpus",
        {},
        inputs=inputs,
        outputs={"out": Path(out)},
        executors=executors,
        image=image,
        summary=summary,
    )
