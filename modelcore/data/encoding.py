"""Documents to token ids: in this process for a small corpus, on every core for a large one."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from modelcore.tokenizers import Tokenizer

BATCH_BYTES = 1 << 20
LARGE_BYTES = 32 << 20  # takes one core some five seconds; starting processes takes one
MOST_PROCESSES = 8  # each holds a tokenizer and two batches, some 100 MiB

_worker_tokenizer: Tokenizer


@dataclass(frozen=True)
class EncodedBatch:
    """Some documents as token ids.

    Attributes:
        ids: uint32, the ids of all documents one after another, an end-of-text id after each, and before each the
            beginning's id if the tokenizer's models are used to it.
        lengths: int64, number of ids of each document, these included.
        text_bytes: UTF-8 bytes of the documents.
    """

    ids: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]
    text_bytes: int


def encode_documents(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[EncodedBatch]:
    """Encodes a stream of documents, in order.

    The first LARGE_BYTES are encoded here; what comes after goes to one process a core. At any time only a few batches
    are in memory.
    """
    batches = _batches(texts)
    encoded = 0
    for batch, size in batches:
        yield _encode(batch, size, tokenizer)
        encoded += size
        if encoded >= LARGE_BYTES:
            break
    processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_PROCESSES)
    following = next(batches, None)
    if following is None:
        return
    if processes == 1:
        yield _encode(*following, tokenizer)
        yield from (_encode(batch, size, tokenizer) for batch, size in batches)
        return
    # Spawned, not forked: this process may have threads (tracking, pyarrow), whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (tokenizer.model_file,)) as pool:
        pending: deque[Future[EncodedBatch]] = deque([pool.submit(_encode_in_worker, *following)])
        for batch, size in batches:
            pending.append(pool.submit(_encode_in_worker, batch, size))
            if len(pending) > 2 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _start_worker(model_file: Path) -> None:
    from modelcore.tokenizers import Tokenizer

    global _worker_tokenizer
    _worker_tokenizer = Tokenizer.load(model_file)


def _encode_in_worker(texts: list[str], size: int) -> EncodedBatch:
    return _encode(texts, size, _worker_tokenizer)


def _encode(texts: list[str], size: int, tokenizer: Tokenizer) -> EncodedBatch:
    parts = [np.array(tokenizer.encode(text, bos=tokenizer.adds_bos, eos=True), dtype=np.uint32) for text in texts]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return EncodedBatch(np.concatenate(parts), lengths, size)


def _batches(texts: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Groups documents until a group has BATCH_BYTES of UTF-8; yields each with its size in bytes."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.encode())
        if size >= BATCH_BYTES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size
