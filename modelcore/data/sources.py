"""Reading text: a file or a folder of .txt, .jsonl or .parquet, compressed or not, as a stream of records.

What one record is depends on the format: a .txt file (or, past MAX_DOCUMENT_BYTES, as much of it as fits, cut at the
end of a line), a line of a .jsonl file, a row of a .parquet file. Memory is bounded by MAX_DOCUMENT_BYTES, not by the
size of a file or of its longest line.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from modelcore.errors import InputError, first_line

logger = logging.getLogger(__name__)

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zst")
MAX_DOCUMENT_BYTES = 8 << 20
PREVIEW_CHARACTERS = 200

Problem = Literal["too_long", "not_utf8", "not_json", "no_text_field", "damaged"]


@dataclass(frozen=True)
class Record:
    """One document, or the reason why there is none.

    Attributes:
        source: The file, relative to the corpus folder, for example ``novels/emma.txt``.
        row: Where in the file, from 1: line of a .txt or .jsonl file, row of a .parquet file.
        size: Bytes, as UTF-8: of the text, or of what could not be read as text.
        text: The text; None if there is a problem.
        problem: What is wrong, or None.
        detail: The problem in words.
        preview: The first characters of what was found, unreadable bytes escaped.
    """

    source: str
    row: int
    size: int
    text: str | None
    problem: Problem | None = None
    detail: str = ""
    preview: str = ""


def corpus_files(path: Path) -> list[Path]:
    """The files of a corpus, sorted by name: the path itself, or every supported file below it.

    Hidden files and folders are left out. Other files in a folder are left out too, with a warning that counts them.

    Raises:
        InputError: If the path does not exist, is a file of an unsupported kind, or a folder without a supported file.
    """
    path = Path(path)
    if path.is_file():
        if file_format(path) is None:
            raise InputError(f"{path} is of no kind that can be read; {_supported()}")
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give a file or a folder of {_supported()}")
    names = sorted(
        file.relative_to(path)
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    others = Counter("".join(name.suffixes[-2:]) or name.name for name in names if file_format(name) is None)
    files = [path / name for name in names if file_format(name) is not None]
    counted = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    if not files:
        raise InputError(f"{path} holds no text{f' (only {counted})' if counted else ''}; {_supported()}")
    if others:
        logger.warning("corpus=%s left_out=%d kinds=%s: %s", path, others.total(), json.dumps(counted), _supported())
    return files


def read_records(path: Path, text_field: str = "text") -> Iterator[Record]:
    """Reads every record of a corpus, those with problems included.

    Args:
        path: A file or a folder.
        text_field: The field of a JSON object, or the column of a parquet file, that holds the text.

    Raises:
        InputError: As :func:`corpus_files` does; or if a parquet file has no such column of text at all.
    """
    root = Path(path)
    for file in corpus_files(root):
        yield from read_piece(Piece(file, source_name(root, file)), text_field)


@dataclass(frozen=True)
class Piece:
    """A file of a corpus, or a part of one that can be read without what comes before it.

    Attributes:
        file: The file.
        source: How its records name it.
        row: The first record's row.
        begin: Where the part begins: a byte of a .txt or .jsonl file, a row group of a .parquet file.
        end: Where it ends, in the same unit; None for the end of the file.
    """

    file: Path
    source: str
    row: int = 1
    begin: int = 0
    end: int | None = None


def source_name(root: Path, file: Path) -> str:
    """How records name a file of the corpus ``root``: by its path below it."""
    source = file.relative_to(root).as_posix() if file != root else file.name
    return os.fsencode(source).decode("utf-8", "backslashreplace")  # a name may be any bytes


def read_piece(piece: Piece, text_field: str = "text") -> Iterator[Record]:
    """Reads every record of a file or a part of one; damage is the last record.

    Raises:
        InputError: If a parquet file has no such column of text at all.
    """
    row = piece.row - 1
    try:
        for record in _read_file(piece, text_field):
            row = record.row
            yield record
    except _damage_errors() as error:
        detail = f"the file cannot be read on from here: {first_line(error)}"
        yield Record(piece.source, row + 1, piece.file.stat().st_size, None, "damaged", detail)


def read_texts(path: Path, text_field: str = "text") -> Iterator[str]:
    """Reads the texts of a corpus that is expected to be clean; blank ones are left out.

    Args:
        path: A file or a folder.
        text_field: The field of a JSON object, or the column of a parquet file, that holds the text.

    Raises:
        InputError: At the first record with a problem, naming its file and line; or if there is no text at all.
    """
    empty = True
    for text in clean_texts(read_records(path, text_field)):
        empty = False
        yield text
    if empty:
        raise InputError(f"{path} holds no text: every file is empty or blank")


def clean_texts(records: Iterator[Record]) -> Iterator[str]:
    """The texts of records that are expected to be clean; blank ones are left out.

    Raises:
        InputError: At the first record with a problem, naming its file and line.
    """
    for record in records:
        where = f"{record.source}:{record.row}"
        if record.text is None:
            raise InputError(f"{where}: {record.detail}; mend it, or let the stage validate_data set such rows aside")
        if (nul := record.text.find("\0")) >= 0:
            line = record.text.count("\n", 0, nul) + 1
            raise InputError(
                f"{where}: NUL byte in line {line} of the text; mend it, or let the stage validate_data set it aside"
            )
        if not record.text.isspace() and record.text:
            yield record.text


def _read_file(piece: Piece, text_field: str) -> Iterator[Record]:
    kind = file_format(piece.file)
    if kind == ".parquet":
        yield from _read_parquet(piece, text_field)
        return
    with _open(piece.file) as handle:
        if piece.begin:
            handle.seek(piece.begin)
        if kind == ".txt":
            yield from _read_txt(handle, piece)
        else:
            yield from _read_jsonl(handle, piece, text_field)


def _read_txt(handle: IO[bytes], piece: Piece) -> Iterator[Record]:
    held, row, offset, source = b"", piece.row, piece.begin, piece.source
    while piece.end is None or offset < piece.end:
        held += handle.read(MAX_DOCUMENT_BYTES + 1 - len(held))
        if len(held) <= MAX_DOCUMENT_BYTES:  # the rest of the file; for most files, all of it
            if held or offset == 0:
                yield _decode(held, source, row, offset)
            return
        cut = held.rfind(b"\n", 0, MAX_DOCUMENT_BYTES) + 1
        if cut:
            yield _decode(held[:cut], source, row, offset)
            row, offset, held = row + held.count(b"\n", 0, cut), offset + cut, held[cut:]
        else:
            size = len(held) + _skip_line(handle, held)
            yield _too_long(source, row, size, held)
            row, offset, held = row + 1, offset + size, b""


def _read_jsonl(handle: IO[bytes], piece: Piece, text_field: str) -> Iterator[Record]:
    row, offset, source = piece.row - 1, piece.begin, piece.source
    while (piece.end is None or offset < piece.end) and (line := handle.readline(MAX_DOCUMENT_BYTES + 1)):
        row += 1
        size = len(line)
        if size > MAX_DOCUMENT_BYTES:
            size += _skip_line(handle, line)
            yield _too_long(source, row, size, line)
        elif not line.isspace():  # a blank line, such as a last one, is no record
            decoded = _decode(line, source, row, offset)
            yield decoded if decoded.text is None else _parse_json(decoded, decoded.text, text_field)
        offset += size


def _parse_json(line: Record, content: str, text_field: str) -> Record:
    def problem(kind: Problem, detail: str) -> Record:
        return Record(line.source, line.row, line.size, None, kind, detail, content[:PREVIEW_CHARACTERS])

    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        return problem("not_json", f"the line is no JSON: {error}")
    if not isinstance(value, dict):
        return problem("no_text_field", f"the line is no JSON object but {_json_kind(value)}")
    if text_field not in value:
        return problem("no_text_field", f"no field {text_field!r} among {_some(value)}")
    text = value[text_field]
    if not isinstance(text, str):
        return problem("no_text_field", f"the field {text_field!r} is no text but {_json_kind(text)}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, UTF-8 cannot
        return problem("not_utf8", f"character {error.start} of the field {text_field!r} is half a surrogate pair")
    return Record(line.source, line.row, size, text)


def _read_parquet(piece: Piece, text_field: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, source = piece.file, piece.source
    with pq.ParquetFile(file, buffer_size=1 << 16, pre_buffer=False) as parquet:
        schema = parquet.schema_arrow
        if text_field not in schema.names:
            raise InputError(f"{file} has no column {text_field!r}; its columns are {_some(schema.names)}")
        if schema.names.count(text_field) > 1:
            raise InputError(f"{file} has {schema.names.count(text_field)} columns {text_field!r}; one is wanted")
        kind = schema.field(text_field).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_string_view(kind)
            or pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
        ):
            raise InputError(f"{file}: the column {text_field!r} is of type {kind}; it must be text")
        row = piece.row - 1
        groups = range(piece.begin, parquet.num_row_groups if piece.end is None else piece.end)
        for batch in parquet.iter_batches(batch_size=64, row_groups=groups, columns=[text_field]):
            # As bytes, for pyarrow does not check that what a file calls text is UTF-8.
            for value in batch.column(0).cast(pa.large_binary()):
                row += 1
                content = value.as_py()
                if content is None:
                    detail = f"the column {text_field!r} is null"
                    yield Record(source, row, 0, None, "no_text_field", detail)
                elif len(content) > MAX_DOCUMENT_BYTES:
                    yield _too_long(source, row, len(content), content)
                else:
                    yield _decode(content, source, row, 0)


def _decode(content: bytes, source: str, row: int, offset: int) -> Record:
    """A record of UTF-8 bytes that begin at ``offset`` of a file; a byte-order mark at its very start is dropped."""
    try:
        text = content.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        position = error.start + (3 if offset == 0 and content.startswith(b"\xef\xbb\xbf") else 0)
        detail = f"byte 0x{content[position]:02x} at offset {offset + position} is not UTF-8 ({error.reason})"
        return Record(source, row, len(content), None, "not_utf8", detail, _preview(content))
    return Record(source, row, len(content), text)


def _too_long(source: str, row: int, size: int, start: bytes) -> Record:
    detail = f"a line or value of {size:,} bytes, more than the {MAX_DOCUMENT_BYTES:,} that are read at once"
    return Record(source, row, size, None, "too_long", detail, _preview(start))


def _skip_line(handle: IO[bytes], start: bytes) -> int:
    """Reads to the end of the line that began with ``start``; returns how many more bytes it has."""
    skipped = 0
    piece = start
    while piece and not piece.endswith(b"\n"):
        piece = handle.readline(1 << 20)
        skipped += len(piece)
    return skipped


def _open(file: Path) -> IO[bytes]:
    match file.suffix.lower():
        case ".gz":
            import gzip

            return cast(IO[bytes], gzip.open(file))
        case ".bz2":
            import bz2

            return bz2.open(file)
        case ".xz":
            import lzma

            return lzma.open(file)
        case ".zst":
            import io

            import pyarrow as pa

            # pyarrow's reader, because zstandard's takes a file that breaks off for one that ends.
            return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"))
        case _:
            return open(file, "rb")


def _damage_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise at a file that is truncated or not what its name says."""
    import lzma
    import zlib

    errors: list[type[Exception]] = [EOFError, OSError, zlib.error, lzma.LZMAError]
    try:
        import pyarrow as pa

        errors.append(pa.ArrowException)
    except ImportError:
        pass
    return tuple(errors)


def file_format(file: Path) -> str | None:
    """Which of FORMATS a file is of, by its name; None for another kind."""
    name = file.name.lower()
    for suffix in COMPRESSIONS:
        for kind in FORMATS:
            if name.endswith(kind + suffix) and (kind != ".parquet" or not suffix):
                return kind
    return None


def _supported() -> str:
    return ".txt, .jsonl (each also .gz, .bz2, .xz or .zst) and .parquet are read"


def _preview(content: bytes) -> str:
    return content[: 4 * PREVIEW_CHARACTERS].decode(errors="backslashreplace")[:PREVIEW_CHARACTERS]


def _json_kind(value: Any) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else kinds[type(value)]


def _some(names: Any) -> str:
    names = sorted(names)
    return f"{names[:8]}{' …' if len(names) > 8 else ''}"
