"""The stage that fits a tokenizer to the corpus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from modelcore.atomic import atomic_directory, write_json
from modelcore.checks import check_choice
from modelcore.stages.outputs import Output
from modelcore.stages.stage import Stage, StageSummary
from modelcore.tokenizers.sentencepiece_file import NORMAL, Algorithm
from modelcore.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from modelcore.tokenizers.tokenizer import SENTENCEPIECE_FILE, TOKENIZER_FILES, Tokenizer

DEFAULT_VOCAB_SIZE = 2048
DEFAULT_ALGORITHM: Algorithm = "unigram"
DEFAULT_SEED = 0

# A tokenizer has no context length of its own; the exported model's folder states the model's.
_NO_LENGTH_LIMIT = 10**9

TOKENIZER = Output("tokenizer", "report.json", '"algorithm"', TOKENIZER_FILES)


def train_tokenizer(
    *,
    corpus: Path | str,
    out: Path | str,
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    algorithm: Algorithm = DEFAULT_ALGORITHM,
    seed: int = DEFAULT_SEED,
    user_symbols: str = "",
    summary: Path | str | None = None,
) -> StageSummary:
    """Fits a SentencePiece vocabulary to a corpus.

    Args:
        corpus: Folder of .txt, .jsonl or .parquet files, as validate_data leaves it.
        out: Folder to write: ``tokenizer.model``, the Hugging Face files ``tokenizer.json`` and
            ``tokenizer_config.json``, and ``report.json``.
        vocab_size: Number of token ids, 4 special ones, the user symbols and 256 bytes included.
        algorithm: ``unigram`` or ``bpe``.
        seed: Decides which passages are drawn where the corpus is larger than the training takes.
        user_symbols: Texts to keep whole as one token each, with a space between; "": none.
        summary: JSON file for the stage's summary, or None.

    Returns:
        The summary: ``vocab_size``, ``bytes_per_token`` on the corpus (of a large one, on its first part),
        ``corpus_bytes``, ``sampled_bytes``, ``sampling`` (how the sample was drawn, in words), ``training_seconds`` and
        ``digest``; the series ``token_lengths`` counts the pieces of each length in characters.

    Raises:
        InputError: If the corpus holds no text, the vocabulary does not fit it, or an argument is out of range.
    """
    corpus, out = Path(corpus), Path(out)
    parameters = {"vocab_size": vocab_size, "algorithm": algorithm, "seed": seed, "user_symbols": user_symbols}
    with Stage("train_tokenizer", {**parameters}, outputs={out: TOKENIZER}, summary=summary) as stage:
        check_choice("algorithm", algorithm, get_args(Algorithm))
        if not stage.restore({"tokenizer": out}, inputs=[corpus]):
            with atomic_directory(out) as folder:
                _train(stage, corpus, folder, vocab_size, algorithm, seed, user_symbols)
            stage.keep({"tokenizer": out})
        stage.run.log_chart("token_lengths.png", "token_lengths", stage.series["token_lengths"])
        stage.run.log_path(out, "tokenizer")
    return stage.summary


def _train(
    stage: Stage, corpus: Path, folder: Path, vocab_size: int, algorithm: Algorithm, seed: int, user_symbols: str
) -> None:
    from modelcore.data.sources import read_texts
    from modelcore.tokenizers.huggingface import export_huggingface
    from modelcore.tokenizers.training import MAX_SAMPLE_BYTES, train_sentencepiece

    started = time.perf_counter()
    training = train_sentencepiece(
        read_texts(corpus),
        folder,
        vocab_size=vocab_size,
        algorithm=algorithm,
        seed=seed,
        user_symbols=[symbol for symbol in user_symbols.split(" ") if symbol],
    )
    seconds = time.perf_counter() - started
    tokenizer = SentencePieceTokenizer(folder / SENTENCEPIECE_FILE)
    export_huggingface(tokenizer, folder, context_length=_NO_LENGTH_LIMIT)
    lengths = Counter(len(piece.text) for piece in tokenizer.model.pieces if piece.kind == NORMAL)
    stage.series["token_lengths"] = {"length": sorted(lengths), "count": [lengths[n] for n in sorted(lengths)]}
    stage.results.update(
        vocab_size=tokenizer.vocab_size,
        bytes_per_token=_bytes_per_token(tokenizer, read_texts(corpus), MAX_SAMPLE_BYTES),
        corpus_bytes=training.corpus_bytes,
        sampled_bytes=training.sampled_bytes,
        sampling=training.sampling,
        digest=tokenizer.digest,
    )
    # Without the time it took: the same corpus gives the same folder, so later stages find their cached results.
    write_json(
        folder / "report.json",
        {"algorithm": algorithm, "seed": seed, "user_symbols": tokenizer.user_symbols, **stage.results, **stage.series},
    )
    stage.results["training_seconds"] = round(seconds, 2)


def _bytes_per_token(tokenizer: Tokenizer, texts: Iterator[str], limit: int) -> float:
    """UTF-8 bytes that a token stands for on average, over the texts until ``limit`` bytes are passed."""
    n_bytes = n_tokens = 0
    for text in texts:
        n_bytes += len(text.encode())
        n_tokens += len(tokenizer.encode_batch([text])[0])
        if n_bytes > limit:
            break
    return round(n_bytes / n_tokens, 4)
