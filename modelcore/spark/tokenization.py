"""Token folders made on Spark: what :func:`modelcore.data.shards.write_tokens` writes, encoded on many parts at a time.

Workers encode portions of the corpus and leave the ids as files. The driver learns how many there are, and so which of
them make each file of the split; workers put those together, each file one task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modelcore.atomic import atomic_file, atomic_path
from modelcore.data.encoding import batches_of, encode_batch
from modelcore.data.shards import SHARD_TOKENS, BoundsWriter, ShardFile, Split, SplitMeta, write_token_folder
from modelcore.data.sources import clean_texts
from modelcore.errors import InputError
from modelcore.spark.portions import PORTION_BYTES, Portion, cut_corpus
from modelcore.spark.session import session
from modelcore.spark.tasks import run_tasks
from modelcore.tokenizers import Tokenizer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Encode:
    """A task that encodes a portion's documents.

    Attributes:
        portion: The portion.
        tokenizer: The tokenizer's file.
        dtype: Data type of the ids.
        folder: Where the ids and the documents' lengths go.
    """

    portion: Portion
    tokenizer: Path
    dtype: str
    folder: Path


@dataclass(frozen=True)
class Encoded:
    """What such a task tells: how many ids its file has, and how many bytes of text they stand for."""

    ids: int
    text_bytes: int


def encode_portion(task: Encode) -> Encoded:
    """Writes the ids of a portion's documents, and how many each document has.

    Raises:
        InputError: At the first record with a problem.
    """
    tokenizer = _tokenizer(task.tokenizer)
    task.folder.mkdir(parents=True, exist_ok=True)
    ids = text_bytes = 0
    with (
        atomic_file(task.folder / f"{task.portion.name}.bin") as file,
        atomic_file(task.folder / f"{task.portion.name}.lengths") as lengths,
    ):
        for texts, size in batches_of(clean_texts(task.portion.records("text"))):
            batch = encode_batch(texts, size, tokenizer, task.dtype)
            file.write(batch.ids.tobytes())
            lengths.write(batch.lengths.astype("<i8").tobytes())
            ids += len(batch.ids)
            text_bytes += size
    return Encoded(ids, text_bytes)


@lru_cache(maxsize=1)
def _tokenizer(file: Path) -> Tokenizer:
    """The tokenizer, loaded once a worker."""
    return Tokenizer.load(file)


@dataclass(frozen=True)
class Assemble:
    """A task that puts one file of a split together.

    Attributes:
        name: The file's name in the token folder.
        folder: The token folder.
        parts: The files of ids it is made of, each with its first byte and the one after its last.
    """

    name: str
    folder: Path
    parts: tuple[tuple[Path, int, int], ...]


def assemble_shard(task: Assemble) -> ShardFile:
    """Writes one file of a split and describes it."""
    digest, size = hashlib.sha256(), 0
    with atomic_path(task.folder / task.name) as fresh, open(fresh, "wb") as out:
        for path, begin, end in task.parts:
            with open(path, "rb") as part:
                part.seek(begin)
                while begin < end:
                    if not (block := part.read(min(_BLOCK, end - begin))):
                        raise OSError(f"{path} ends at byte {begin}, {end - begin} before it should")
                    out.write(block)
                    digest.update(block)
                    size += len(block)
                    begin += len(block)
    return ShardFile(task.name, size, digest.hexdigest())


def write_tokens(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    train: Path,
    heldout: Path,
    scratch: Path,
    shard_tokens: int = SHARD_TOKENS,
    portion_bytes: int = PORTION_BYTES,
) -> None:
    """Tokenizes two corpora into a token folder, which takes its place when it is complete.

    Args:
        folder: Where the token folder belongs; replaced if it exists. Driver and workers share its file system.
        tokenizer: Turns text into ids; a copy of it goes into the folder.
        train: Documents to train on, a file or a folder.
        heldout: Documents to evaluate on, in the same forms.
        scratch: An existing, empty folder that driver and workers share, with room for all ids.
        shard_tokens: Most tokens a file.
        portion_bytes: About how much text a task encodes.

    Raises:
        InputError: If a document cannot be read, a split has no document, or Java is missing.
    """
    corpora: dict[Split, Path] = {"train": train, "heldout": heldout}
    with session("tokenize_corpus", scratch) as spark:

        def write_split(fresh: Path, split: Split, dtype: str) -> SplitMeta:
            portions = cut_corpus(spark, corpora[split], portion_bytes=portion_bytes)
            tasks = [Encode(portion, tokenizer.model_file, dtype, scratch / split) for portion in portions]
            encoded = run_tasks(spark, f"tokenize {split}", encode_portion, tasks)
            if not any(part.ids for part in encoded):
                raise InputError(f"{corpora[split]} holds no text: every file is empty or blank")
            (fresh / split).mkdir()
            return _assemble(spark, fresh, split, tasks, encoded, dtype, shard_tokens)

        write_token_folder(folder, tokenizer, write_split)


def _assemble(
    spark: SparkSession,
    folder: Path,
    split: Split,
    tasks: Sequence[Encode],
    encoded: Sequence[Encoded],
    dtype: str,
    shard_tokens: int,
) -> SplitMeta:
    """Puts the files of a split together from those of its portions."""
    size = np.dtype(dtype).itemsize
    limit = shard_tokens * size
    shards: list[list[tuple[Path, int, int]]] = [[]]
    room = limit
    for task, part in zip(tasks, encoded, strict=True):
        begin, end = 0, part.ids * size
        while begin < end:
            if not room:
                shards.append([])
                room = limit
            taken = min(room, end - begin)
            shards[-1].append((task.folder / f"{task.portion.name}.bin", begin, begin + taken))
            begin, room = begin + taken, room - taken
    assembling = [Assemble(f"{split}/{number:05d}.bin", folder, tuple(parts)) for number, parts in enumerate(shards)]
    files = run_tasks(spark, f"write {split}", assemble_shard, assembling)
    with BoundsWriter(folder, split) as bounds:
        for task in tasks:
            bounds.write(np.fromfile(task.folder / f"{task.portion.name}.lengths", dtype="<i8"))
    return bounds.describe(sum(part.text_bytes for part in encoded), files)
