"""The stage tokenize_corpus: clean documents and a tokenizer in, a token folder out."""

from __future__ import annotations

import time
from pathlib import Path

from modelcore.data.shards import FORMAT, open_split, write_tokens
from modelcore.data.sources import read_texts
from modelcore.errors import InputError
from modelcore.stages.engine import Engine, check_engine
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Stage, StageSummary
from modelcore.stages.work import scratch_beside
from modelcore.tokenizers import TOKENIZER_FILES, Tokenizer

TOKENS = Output("token folder", "meta.json", FORMAT, (*TOKENIZER_FILES, "train", "heldout"))


def tokenize_corpus(
    *,
    corpus: Path | str,
    heldout: Path | str,
    tokenizer: Path | str,
    out: Path | str,
    engine: Engine = "local",
    summary: Path | str | None = None,
) -> StageSummary:
    """Turns training and held-out documents into token shards that training maps into memory.

    Args:
        corpus: Training documents: a file or a folder of .txt, .jsonl (field ``text``) or .parquet (column ``text``).
        heldout: Documents to evaluate on, in the same forms.
        tokenizer: A folder with a tokenizer of any kind, or its file; a copy of it goes into ``out``.
        out: The token folder; see :mod:`modelcore.data.shards` for its layout.
        engine: Who does the work: ``local``, this process, or ``spark``; what is written is the same.
        summary: JSON file for the stage's summary, or None.

    Raises:
        InputError: If a path does not exist, the engine is unknown or not installed, a document cannot be
            read, or a corpus holds no text.
    """
    corpus, heldout, tokenizer, out = Path(corpus), Path(heldout), Path(tokenizer), Path(out)
    with Stage("tokenize_corpus", {}, outputs={out: TOKENS}, summary=summary) as stage:
        for path in (corpus, heldout, tokenizer):
            if not path.exists():
                raise InputError(f"{path} does not exist")
        check_engine(engine)
        outputs = {"tokens": out}
        if not stage.restore(outputs, inputs=[corpus, heldout, tokenizer]):
            started = time.monotonic()
            if engine == "spark":
                from modelcore.spark.tokenization import write_tokens as write_tokens_on_spark

                with scratch_beside(out, "tokenize_corpus") as scratch:
                    write_tokens_on_spark(
                        out, Tokenizer.load(tokenizer), train=corpus, heldout=heldout, scratch=scratch
                    )
            else:
                write_tokens(out, Tokenizer.load(tokenizer), train=read_texts(corpus), heldout=read_texts(heldout))
            seconds = time.monotonic() - started
            train, held = open_split(out, "train"), open_split(out, "heldout")
            stage.results.update(
                vocab_size=train.vocab_size,
                train_documents=train.n_documents,
                train_tokens=train.n_tokens,
                train_bytes=train.n_bytes,
                train_digest=train.digest,
                heldout_documents=held.n_documents,
                heldout_tokens=held.n_tokens,
                heldout_bytes=held.n_bytes,
                heldout_digest=held.digest,
                bytes_per_token=round(train.n_bytes / train.n_tokens, 4),
                heldout_bytes_per_token=round(held.n_bytes / held.n_tokens, 4),
                mb_per_second=round((train.n_bytes + held.n_bytes) / 1e6 / seconds, 2),
            )
            stage.keep(outputs)
        for part, source, context in (("train", corpus, "training"), ("heldout", heldout, "evaluation")):
            stage.run.log_dataset(
                name=f"{part} tokens",
                source=str(source),
                digest=stage.results[f"{part}_digest"],
                rows=stage.results[f"{part}_documents"],
                context=context,
            )
    return stage.summary
