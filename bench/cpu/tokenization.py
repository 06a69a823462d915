"""Text to token ids on all cores: ours as the stage does it, beside the batch functions of two libraries."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.benchmark import Options, main
from bench.cpu.text import documents, novels
from bench.measure import alternate, timed
from bench.row import Row
from modelcore.data.encoding import encode_documents
from modelcore.machine import available_cores
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.huggingface import export_huggingface
from modelcore.tokenizers.training import train_sentencepiece

VOCAB_SIZE = 2048
SENTENCEPIECE, TOKENIZERS = "SentencePiece, batch", "Hugging Face tokenizers, batch"


def rows(options: Options) -> Iterator[Row]:
    """Megabytes of text a second, with a vocabulary of 2,048 trained on the sample's novels.

    All load the tokenizer, know nothing of the text yet, and make arrays of ids. The start of our processes counts too.
    """
    import tokenizers
    from sentencepiece import SentencePieceProcessor

    texts = list(documents((1 << 16) if options.small else (32 << 20)))
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = [text[:20_000] for text in novels()] if options.small else novels()
        train_sentencepiece(
            sample, folder, vocab_size=512 if options.small else VOCAB_SIZE, algorithm="unigram", seed=0
        )
        tokenizer = Tokenizer.load(folder)
        export_huggingface(tokenizer, folder, context_length=1024)

        def ours() -> None:
            for batch in encode_documents(texts, Tokenizer.load(folder), np.uint16):
                taken(batch.ids)

        def sentencepiece() -> None:
            processor = SentencePieceProcessor(model_file=str(tokenizer.model_file))
            for some in batched(texts):
                for ids in processor.encode(some, num_threads=available_cores()):
                    taken(np.array(ids, dtype=np.uint16))

        def huggingface() -> None:
            exported = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            for some in batched(texts):
                for encoding in exported.encode_batch_fast(some, add_special_tokens=False):
                    taken(np.array(encoding.ids, dtype=np.uint16))

        seconds = alternate(
            {"ours": timed(ours), SENTENCEPIECE: timed(sentencepiece), TOKENIZERS: timed(huggingface)},
            runs=1 if options.small else 3,
            warmup=0,
        )
    speed = {who: size / 1e6 / each.median for who, each in seconds.items()}
    for peer in (SENTENCEPIECE, TOKENIZERS):
        yield Row("tokenization on all cores", "throughput", speed["ours"], "MB/s", peer, speed[peer])


def batched(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """A thousand texts at a time."""
    return (texts[start : start + 1000] for start in range(0, len(texts), 1000))


def taken(ids: npt.NDArray[Any]) -> None:
    """What a writer would get; without ids there was no work."""
    if not ids.size:
        raise RuntimeError("a text gave no ids")


if __name__ == "__main__":
    main(rows)
