"""Documents to token ids: in this process for a small corpus, on every core for a large one."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modelcore.errors import InputError
from modelcore.machine import available_cores, memory_limit

if TYPE_CHECKING:
    from modelcore.tokenizers import Tokenizer

BATCH_BYTES = 1 << 20
LARGE_BYTES = 8 << 20  # takes one core a third of a second or more, and a process as long to start
MOST_THREADS = 4
PROCESS_BYTES = 256 << 20  # memory set aside for each: a tokenizer, and the longest document there can be

_worker_tokenizer: Tokenizer


@dataclass(frozen=True)
class EncodedBatch:
    """Some documents as token ids.

    Attributes:
        ids: The ids of all documents one after another, an end-of-text id after each, and before each the beginning's
            id if the tokenizer's models are used to it.
        lengths: int64, number of ids of each document, these included.
        text_bytes: UTF-8 bytes of the documents.
    """

    ids: npt.NDArray[np.unsignedinteger[Any]]
    lengths: npt.NDArray[np.int64]
    text_bytes: int


def encode_documents(
    texts: Iterable[str], tokenizer: Tokenizer, dtype: npt.DTypeLike = np.uint32
) -> Iterator[EncodedBatch]:
    """Encodes a stream of documents, in order, on every core.

    Threads of this process do it where the tokenizer lets them and they are few: cutting text and joining ids, which
    one thread does at a time, is a sixth of the work. Otherwise processes do, but for the first LARGE_BYTES, which are
    encoded here. At any time only a few batches are in memory.

    Args:
        texts: The documents.
        tokenizer: Turns them into ids.
        dtype: Data type of the ids.

    Raises:
        InputError: If memory does not suffice for that many processes.
    """
    batches = batches_of(texts)
    cores = available_cores()
    if tokenizer.releases_gil and 1 < cores <= MOST_THREADS:
        with ThreadPoolExecutor(cores) as threads:
            yield from _in_order(
                lambda batch, size: threads.submit(encode_batch, batch, size, tokenizer, dtype), batches, cores
            )
        return
    encoded = 0
    for batch, size in batches:
        yield encode_batch(batch, size, tokenizer, dtype)
        encoded += size
        if encoded >= LARGE_BYTES:
            break
    following = next(batches, None)
    if following is None:
        return
    batches = itertools.chain([following], batches)
    processes = min(cores, memory_limit() // PROCESS_BYTES)
    if processes > 1:
        yield from _encode_in_processes(batches, tokenizer, dtype, processes)
    else:
        yield from (encode_batch(batch, size, tokenizer, dtype) for batch, size in batches)


def _encode_in_processes(
    batches: Iterable[tuple[list[str], int]], tokenizer: Tokenizer, dtype: npt.DTypeLike, processes: int
) -> Iterator[EncodedBatch]:
    # Spawned, not forked: this process may have threads (tracking, pyarrow), whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, context, _start_worker, (tokenizer.model_file,)) as pool:

            def submit(batch: list[str], size: int) -> Future[EncodedBatch]:
                with _without_main_module():
                    return pool.submit(_encode_in_worker, batch, size, dtype)

            yield from _in_order(submit, batches, processes)
    except BrokenProcessPool as error:
        raise InputError(
            f"one of {processes} processes that encode text was killed, most likely because memory ran out; give more "
            "memory or fewer cores"
        ) from error


def _in_order(
    submit: Callable[[list[str], int], Future[EncodedBatch]], batches: Iterable[tuple[list[str], int]], workers: int
) -> Iterator[EncodedBatch]:
    """Keeps the workers busy with batches, not many more than they need, and gives what they make in order."""
    pending: deque[Future[EncodedBatch]] = deque()
    ahead = 0  # bytes of text that are with the workers or on the way
    for batch, size in batches:
        pending.append(submit(batch, size))
        ahead += size
        while len(pending) > workers and ahead > 2 * workers * BATCH_BYTES:
            encoded = pending.popleft().result()
            ahead -= encoded.text_bytes
            yield encoded
    while pending:
        yield pending.popleft().result()


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keeps processes that are started from importing this one's main module: in a pipeline that is KFP's executor."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker(model_file: Path) -> None:
    from modelcore.tokenizers import Tokenizer

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes, and the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _worker_tokenizer
    _worker_tokenizer = Tokenizer.load(model_file)


def _end_with_parent() -> None:
    """Waits for the end of the process that started this one, which may be a kill, and ends too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _encode_in_worker(texts: list[str], size: int, dtype: npt.DTypeLike) -> EncodedBatch:
    return encode_batch(texts, size, _worker_tokenizer, dtype)


def encode_batch(texts: list[str], size: int, tokenizer: Tokenizer, dtype: npt.DTypeLike) -> EncodedBatch:
    """Encodes some documents of ``size`` bytes, here."""
    ids, lengths = tokenizer.encode_batch(texts, bos=tokenizer.adds_bos, eos=True)
    return EncodedBatch(ids.astype(dtype), lengths, size)


def batches_of(texts: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Groups documents until a group has BATCH_BYTES of UTF-8; yields each with its size in bytes."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) if text.isascii() else len(text.encode())
        if size >= BATCH_BYTES:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size
