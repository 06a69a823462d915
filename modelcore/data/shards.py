"""Token folders: a tokenized corpus on disk, written as a stream and read by memory mapping.

Layout::

    meta.json           counts, data type, the tokenizer's digest, and size and SHA-256 of every file below
    tokenizer.model     the tokenizer that made the tokens, or tokenizer.json and tokenizer_config.json
    train/00000.bin     token ids, little-endian uint16 (uint32 for vocabularies of more than 65,536 tokens)
    train/bounds.npy    int64: where each document begins, and as the last number the split's length
    heldout/...         the same for the held-out text

The files of a split are one long sequence cut at a fixed size, so a document may continue in the next file. Every
document is followed by one end-of-text token, which belongs to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from modelcore.atomic import atomic_directory, write_json
from modelcore.data.encoding import encode_documents
from modelcore.errors import InputError
from modelcore.files import file_digest, read_json
from modelcore.progress import Progress

if TYPE_CHECKING:
    from modelcore.tokenizers import Tokenizer

Split = Literal["train", "heldout"]

FORMAT = "modelcore-tokens"
VERSION = 1
SHARD_TOKENS = 1 << 26  # 128 MiB a file at two bytes a token


@dataclass(frozen=True)
class ShardFile:
    """One file of a split, as meta.json describes it.

    Attributes:
        name: Path relative to the token folder, for example ``train/00000.bin``.
        size: Bytes.
        sha256: SHA-256 of the content, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class SplitMeta:
    """What meta.json says of one split.

    Attributes:
        documents: Number of documents.
        tokens: Number of tokens, one end-of-text token a document included.
        text_bytes: UTF-8 bytes of the text that the tokens stand for.
        shards: The token files, in order.
        bounds: The file of document bounds.
    """

    documents: int
    tokens: int
    text_bytes: int
    shards: list[ShardFile]
    bounds: ShardFile


class TokenSplit:
    """One split of a token folder, memory-mapped: reading a window touches only its own pages.

    Made by :func:`open_split`.

    Attributes:
        n_tokens: Number of tokens.
        n_bytes: UTF-8 bytes of the text that the tokens stand for.
        n_documents: Number of documents.
        vocab_size: Vocabulary of the tokenizer; every id is below it.
        tokenizer_digest: SHA-256 of the tokenizer's model file, in hexadecimal.
        digest: SHA-256 over the digests of the split's token files, in hexadecimal.
    """

    def __init__(
        self, folder: Path, split: Split, meta: SplitMeta, dtype: str, vocab_size: int, tokenizer_digest: str
    ) -> None:
        self.folder, self.split = folder, split
        self.n_tokens, self.n_bytes, self.n_documents = meta.tokens, meta.text_bytes, meta.documents
        self.vocab_size, self.tokenizer_digest = vocab_size, tokenizer_digest
        self.digest = hashlib.sha256("".join(shard.sha256 for shard in meta.shards).encode()).hexdigest()
        self._bounds = meta.bounds
        self._maps = [_map_file(folder / shard.name) for shard in meta.shards]
        self._shards = [np.frombuffer(content, dtype=dtype) for content in self._maps]
        self._ends = list(accumulate(len(shard) for shard in self._shards))

    def window(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """The tokens ``start`` up to and without ``start + length``.

        Returns:
            int64, shape (length,); a copy.

        Raises:
            IndexError: If the window is not wholly inside the split.
            InputError: If an id is outside the vocabulary.
        """
        window = np.empty(length, dtype=np.int64)
        filled = 0
        for shard, first, last in self._pieces(start, length):
            window[filled : filled + last - first] = self._shards[shard][first:last]
            filled += last - first
        if length and window.max() >= self.vocab_size:
            raise InputError(
                f"{self.folder / self.split} holds the id {window.max()} near token {start}, and its vocabulary has "
                f"{self.vocab_size}: a file was changed; tokenize the corpus again"
            )
        return window

    def prefetch(self, start: int, length: int) -> None:
        """Has the system begin to read what :meth:`window` will be asked for, and does not wait for it.

        It reads no more than that. When a page is missing, the system reads what lies around it too, which for windows
        here and there is hundreds of times what is wanted.

        Raises:
            IndexError: If the window is not wholly inside the split.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):  # not everywhere but on Linux and macOS
            return
        for shard, first, last in self._pieces(start, length):
            size = self._shards[shard].itemsize
            begin = first * size // mmap.PAGESIZE * mmap.PAGESIZE
            with contextlib.suppress(OSError):  # it is advice; a fault of the disk shows when the window is read
                self._maps[shard].madvise(mmap.MADV_WILLNEED, begin, last * size - begin)

    def _pieces(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Where a window lies: for each file, its number and the first token in it and the one after the last."""
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(f"tokens {start} to {start + length} asked of a split of {self.n_tokens}")
        shard = bisect_right(self._ends, start)
        while length:
            end = self._ends[shard]
            first = start - end + len(self._shards[shard])
            taken = min(length, end - start)
            yield shard, first, first + taken
            start, length, shard = start + taken, length - taken, shard + 1

    def document_bounds(self) -> npt.NDArray[np.int64]:
        """Token offsets of the documents: document ``i`` is ``bounds[i]`` up to and without ``bounds[i + 1]``.

        Returns:
            int64, shape (n_documents + 1,), from 0 to ``n_tokens``; memory-mapped, not to be written to.

        Raises:
            InputError: If the file is not what was written.
        """
        file = self.folder / self._bounds.name
        if file_digest(file) != self._bounds.sha256:
            raise InputError(
                f"{file} does not have the SHA-256 sum in meta.json: it was changed; tokenize the corpus again"
            )
        bounds: npt.NDArray[np.int64] = np.load(file, mmap_mode="r", allow_pickle=False)
        return bounds


def _map_file(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def open_split(folder: Path, split: Split, tokenizer_digest: str | None = None) -> TokenSplit:
    """Opens one split of a token folder, after checking that its files have the sizes they were written with.

    Args:
        folder: The token folder.
        split: ``train`` or ``heldout``.
        tokenizer_digest: If given, the digest that the tokens' tokenizer must have.

    Raises:
        InputError: If the folder is no token folder, a file is missing or truncated, or the tokens were made with
            another tokenizer.
    """
    folder = Path(folder)
    meta = _read_meta(folder)
    if tokenizer_digest is not None and meta["tokenizer_digest"] != tokenizer_digest:
        raise InputError(
            f"{folder} was made with another tokenizer (SHA-256 {meta['tokenizer_digest'][:12]}…, "
            f"wanted {tokenizer_digest[:12]}…); tokenize the corpus again with this one"
        )
    try:
        fields = meta["splits"][split]
        described = SplitMeta(
            documents=int(fields["documents"]),
            tokens=int(fields["tokens"]),
            text_bytes=int(fields["text_bytes"]),
            shards=[ShardFile(**shard) for shard in fields["shards"]],
            bounds=ShardFile(**fields["bounds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'meta.json'} does not describe the split {split!r}: {error}") from error
    for file in [*described.shards, described.bounds]:
        path = folder / file.name
        if not path.is_file():
            raise InputError(f"{path} is missing, though meta.json lists it; tokenize the corpus again")
        if (size := path.stat().st_size) != file.size:
            raise InputError(
                f"{path} has {size:,} bytes and should have {file.size:,}: it is truncated or was changed; "
                "tokenize the corpus again"
            )
    if sum(file.size for file in described.shards) != described.tokens * np.dtype(meta["dtype"]).itemsize:
        raise InputError(f"{folder / 'meta.json'} lists files that do not add up to its {described.tokens:,} tokens")
    return TokenSplit(folder, split, described, meta["dtype"], meta["vocab_size"], meta["tokenizer_digest"])


def write_tokens(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    train: Iterable[str],
    heldout: Iterable[str],
    shard_tokens: int = SHARD_TOKENS,
) -> None:
    """Tokenizes two streams of documents into a token folder, which takes its place when it is complete.

    Memory is bounded by the batches of documents in work, whatever the size of the corpus and the number of documents.

    Args:
        folder: Where the token folder belongs; replaced if it exists.
        tokenizer: Turns text into ids; a copy of it goes into the folder.
        train: Documents to train on.
        heldout: Documents to evaluate on.
        shard_tokens: Most tokens a file.

    Raises:
        InputError: If a split has no document, or the disk is full.
    """
    texts: dict[Split, Iterable[str]] = {"train": train, "heldout": heldout}
    write_token_folder(
        folder,
        tokenizer,
        lambda fresh, split, dtype: _write_split(fresh, split, texts[split], tokenizer, dtype, shard_tokens),
    )


def write_token_folder(
    folder: Path, tokenizer: Tokenizer, write_split: Callable[[Path, Split, str], SplitMeta]
) -> None:
    """Makes a token folder, which takes its place when it is complete, of splits that somebody else writes.

    Args:
        folder: Where the token folder belongs; replaced if it exists.
        tokenizer: What makes the ids; a copy of it goes into the folder.
        write_split: Writes a split into the folder given and describes it; is told the ids' data type.

    Raises:
        InputError: If a split has no document, or the disk is full.
    """
    with atomic_directory(Path(folder)) as fresh:
        tokenizer.save(fresh)
        dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
        splits: tuple[Split, ...] = ("train", "heldout")
        meta: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": dtype,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_digest": tokenizer.digest,
            "splits": {split: asdict(write_split(fresh, split, dtype)) for split in splits},
        }
        write_json(fresh / "meta.json", meta)


def _write_split(
    folder: Path, split: Split, texts: Iterable[str], tokenizer: Tokenizer, dtype: str, shard_tokens: int
) -> SplitMeta:
    (folder / split).mkdir()
    text_bytes = 0
    with (
        _ShardWriter(folder, split, shard_tokens * np.dtype(dtype).itemsize) as writer,
        BoundsWriter(folder, split) as bounds,
        Progress(f"tokenize {split}", None, "B") as progress,
    ):
        for batch in encode_documents(texts, tokenizer, dtype):
            writer.write(batch.ids.tobytes())
            bounds.write(batch.lengths)
            text_bytes += batch.text_bytes
            progress.update(batch.text_bytes)
    return bounds.describe(text_bytes, writer.files)


class BoundsWriter:
    """Writes where each document begins, as the .npy file that ``np.save`` would make of all of it, as lengths come.

    Args:
        folder: The token folder.
        split: The split, whose folder is there.

    Attributes:
        documents: Documents so far.
        tokens: Their tokens.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self._path, self._split = folder / split / "bounds.npy", split
        self._file = open(self._path, "wb")  # noqa: SIM115  closed by __exit__
        self.documents = self.tokens = 0

    def __enter__(self) -> Self:
        self._write_header()
        self._file.write(np.zeros(1, dtype=np.int64).tobytes())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                self._write_header()

    def write(self, lengths: npt.NDArray[np.int64]) -> None:
        """Adds documents of so many tokens each."""
        self._file.write((self.tokens + lengths.cumsum()).tobytes())
        self.documents += len(lengths)
        self.tokens += int(lengths.sum())

    def describe(self, text_bytes: int, shards: list[ShardFile]) -> SplitMeta:
        """What meta.json says of the split, once this writer is closed.

        Args:
            text_bytes: UTF-8 bytes of all documents.
            shards: The token files.

        Raises:
            InputError: If there was no document.
        """
        if not self.documents:
            raise InputError(f"the {self._split} corpus holds no document; give at least one")
        described = ShardFile(f"{self._split}/bounds.npy", self._path.stat().st_size, file_digest(self._path))
        return SplitMeta(self.documents, self.tokens, text_bytes, shards, described)

    def _write_header(self) -> None:
        # NumPy leaves room in a header for any length, so the last one takes no more of the file than the first.
        described = {"descr": "<i8", "fortran_order": False, "shape": (self.documents + 1,)}
        np.lib.format.write_array_header_1_0(self._file, described)


class _ShardWriter:
    """Writes one long byte sequence into numbered files of at most ``limit`` bytes, listed in ``files``."""

    def __init__(self, folder: Path, split: Split, limit: int) -> None:
        self._folder, self._split, self._limit = folder, split, limit
        self.files: list[ShardFile] = []
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            if self._size == self._limit:
                self._close()
                self._open()
            piece = view[: self._limit - self._size]
            self._file.write(piece)
            self._hash.update(piece)
            self._size += len(piece)
            view = view[len(piece) :]

    def _open(self) -> None:
        self._name = f"{self._split}/{len(self.files):05d}.bin"
        self._file = open(self._folder / self._name, "wb")  # noqa: SIM115  closed by _close
        self._hash, self._size = hashlib.sha256(), 0

    def _close(self) -> None:
        self._file.close()
        self.files.append(ShardFile(self._name, self._size, self._hash.hexdigest()))


def _read_meta(folder: Path) -> dict[str, Any]:
    file = folder / "meta.json"
    if not file.is_file():
        raise InputError(f"{folder} is no token folder: it has no meta.json; make one with the stage tokenize_corpus")
    meta = read_json(file)
    if meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise InputError(f"{file} is not of the format {FORMAT!r}, version {VERSION}; tokenize the corpus again")
    wanted = {"format", "version", "dtype", "vocab_size", "tokenizer_digest", "splits"}
    if meta.keys() != wanted:
        raise InputError(f"{file} must have exactly the fields {sorted(wanted)}, not {sorted(meta)}")
    if meta["dtype"] not in ("<u2", "<u4"):
        raise InputError(f"{file} names the data type {meta['dtype']!r}; it must be '<u2' or '<u4'")
    return meta
