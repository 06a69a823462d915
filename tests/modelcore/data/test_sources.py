"""Reading corpora: every format, every compression, every kind of damage, and memory that stays small."""

import bz2
import gzip
import json
import logging
import lzma
import os
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcore.data import sources
from modelcore.data.sources import MAX_DOCUMENT_BYTES, read_records, read_texts
from modelcore.errors import InputError

COMPRESS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
}
TEXTS = ["Emma Woodhouse,\nhandsome, clever,\r\nand rich", "日本語 🙂 größer", "three"]


def write_jsonl(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def only_problem(path, **options):
    (record,) = [record for record in read_records(path, **options) if record.text is None]
    return record


class TestFormats:
    def test_a_file_whose_name_is_no_utf8_is_read_under_a_name_that_is(self, tmp_path):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("Emma")
        (record,) = read_records(tmp_path)
        assert (record.source, record.text) == (r"caf\xe9.txt", "Emma")

    def test_a_parquet_file_with_two_columns_of_the_name_is_refused(self, tmp_path):
        columns = [pa.array(["one"]), pa.array(["two"])]
        pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"a\.parquet has 2 columns 'text'; one is wanted"):
            list(read_records(tmp_path))

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_a_text_file_is_one_document_kept_to_the_byte(self, tmp_path, suffix):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(COMPRESS[suffix](TEXTS[0].encode()))
        (record,) = read_records(path)
        assert (record.source, record.row, record.text, record.size) == (path.name, 1, TEXTS[0], len(TEXTS[0].encode()))

    @pytest.mark.parametrize("suffix", COMPRESS)
    def test_a_jsonl_line_is_one_document(self, tmp_path, suffix):
        path = tmp_path / f"a.jsonl{suffix}"
        lines = "\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS) + "\n\n"
        path.write_bytes(COMPRESS[suffix](lines.encode()))
        assert [(record.row, record.text) for record in read_records(path)] == list(enumerate(TEXTS, 1))

    @pytest.mark.parametrize(
        "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary()]
    )
    def test_a_parquet_row_is_one_document(self, tmp_path, kind):
        texts = pa.array([text.encode() for text in TEXTS]) if kind == pa.binary() else pa.array(TEXTS).cast(kind)
        pq.write_table(pa.table({"body": texts}), tmp_path / "a.parquet")
        records = read_records(tmp_path / "a.parquet", text_field="body")
        assert [(record.row, record.text) for record in records] == list(enumerate(TEXTS, 1))

    def test_a_folder_is_read_through_in_the_order_of_names_without_hidden_files(self, tmp_path):
        for name in ("b.txt", "a/z.txt", "a/a.jsonl", ".hidden.txt", ".git/c.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text('{"text": "x"}')
        assert [record.source for record in read_records(tmp_path)] == ["a/a.jsonl", "a/z.txt", "b.txt"]

    def test_a_byte_order_mark_is_no_part_of_the_text(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
        assert list(read_texts(tmp_path)) == ["hello"]

    def test_other_files_of_a_folder_are_left_out_with_a_warning_that_counts_them(self, tmp_path, caplog):
        for name in ("a.txt", "notes.md", "more.md", "x.pdf"):
            (tmp_path / name).write_text("x")
        with caplog.at_level(logging.WARNING):
            assert [record.source for record in read_records(tmp_path)] == ["a.txt"]
        assert "left_out=3" in caplog.text
        assert "2 .md, 1 .pdf" in caplog.text

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1))
    def test_every_text_comes_back_from_every_format(self, tmp_path, text):
        (tmp_path / "a.txt").write_bytes(text.encode())
        write_jsonl(tmp_path / "a.jsonl", [{"text": text}])
        pq.write_table(pa.table({"text": [text]}), tmp_path / "a.parquet")
        assert [record.text for record in read_records(tmp_path)] == [text] * 3


class TestLongFiles:
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(lines=st.lists(st.text("abü", max_size=9), max_size=30), limit=st.integers(24, 60))
    def test_a_text_beyond_the_limit_comes_in_parts_that_make_up_the_whole(self, tmp_path, lines, limit):
        content = "\n".join(lines)
        (tmp_path / "a.txt").write_bytes(content.encode())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "MAX_DOCUMENT_BYTES", limit)
            records = list(read_records(tmp_path / "a.txt"))
        assert "".join(record.text for record in records) == content
        assert all(record.size <= limit for record in records)
        for record, following in pairwise(records):
            assert record.text.endswith("\n")
            assert following.row == record.row + record.text.count("\n"), "row is the line where a part begins"

    @pytest.mark.parametrize(("before", "after"), [("", ""), ("first\n", "\nlast\n"), ("", "\nlast"), ("first\n", "")])
    def test_only_the_line_that_is_too_long_is_lost(self, tmp_path, monkeypatch, before, after):
        monkeypatch.setattr(sources, "MAX_DOCUMENT_BYTES", 20)
        (tmp_path / "a.txt").write_text(before + "x" * 100 + after)
        records = list(read_records(tmp_path))
        assert "".join(record.text for record in records if record.text) == before + after[1:]
        (long,) = [record for record in records if record.text is None]
        assert long.problem == "too_long"
        assert long.row == before.count("\n") + 1
        assert long.size == 100 + (1 if after else 0)

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
    def test_a_line_of_50_mb_is_reported_in_little_memory(self, tmp_path, name):
        content = b'{"text": "' + b"x" * 50_000_000 + b'"}\n' + b'{"text": "after"}\n'
        (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
        del content
        tracemalloc.start()
        try:
            records = list(read_records(tmp_path))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert records[0].problem == "too_long"
        assert records[0].size == 50_000_013
        assert "50,000,013 bytes, more than the 8,388,608" in records[0].detail
        assert len(records[0].preview) == 200
        assert "after" in records[1].text
        assert peak < 5 * MAX_DOCUMENT_BYTES


class TestProblems:
    def test_bytes_that_are_no_utf8_are_located(self, tmp_path):
        (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
        record = only_problem(tmp_path)
        assert record.problem == "not_utf8"
        assert record.detail.startswith("byte 0xe9 at offset 3 is not UTF-8")
        assert record.preview == "caf\\xe9 au lait"

    def test_the_offset_counts_from_the_start_of_a_jsonl_file(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
        record = only_problem(tmp_path)
        assert (record.row, record.problem) == (2, "not_utf8")
        assert "offset 25" in record.detail

    @pytest.mark.parametrize(
        ("line", "problem", "detail"),
        [
            ("{not json}", "not_json", "the line is no JSON: Expecting property name"),
            ("[" * 100_000, "not_json", "the line is no JSON"),
            ('"a string"', "no_text_field", "no JSON object but a string"),
            ('{"title": "a", "body": "b"}', "no_text_field", "no field 'text' among ['body', 'title']"),
            ('{"text": 5}', "no_text_field", "the field 'text' is no text but a number"),
            ('{"text": null}', "no_text_field", "the field 'text' is no text but null"),
            ('{"text": "\\ud83d"}', "not_utf8", "half a surrogate pair"),
        ],
    )
    def test_a_jsonl_line_without_a_text_is_told_apart(self, tmp_path, line, problem, detail):
        (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n' + line + "\n")
        record = only_problem(tmp_path)
        assert (record.row, record.problem) == (2, problem)
        assert detail in record.detail

    def test_a_parquet_row_may_be_null_or_no_utf8(self, tmp_path):
        pq.write_table(pa.table({"text": pa.array([b"fine", None, b"\xff"], pa.binary())}), tmp_path / "a.parquet")
        problems = [(record.row, record.problem) for record in read_records(tmp_path) if record.text is None]
        assert problems == [(2, "no_text_field"), (3, "not_utf8")]

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
    def test_a_compressed_file_that_breaks_off_is_reported(self, tmp_path, suffix):
        content = COMPRESS[suffix](b"".join(b"%d " % (number * 7919) for number in range(50_000)))
        (tmp_path / f"a.txt{suffix}").write_bytes(content[: len(content) // 2])
        record = only_problem(tmp_path)
        assert record.problem == "damaged"
        assert "cannot be read" in record.detail

    @pytest.mark.parametrize("name", ["a.parquet", "a.txt.gz", "a.txt.zst"])
    def test_a_file_that_is_not_what_its_name_says_is_reported(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"this is plain text, whatever the name says")
        assert only_problem(tmp_path).problem == "damaged"


class TestRefusals:
    def test_a_missing_path(self, tmp_path):
        with pytest.raises(InputError, match="nowhere does not exist"):
            list(read_records(tmp_path / "nowhere"))

    def test_a_folder_without_text_says_what_it_holds(self, tmp_path):
        (tmp_path / "a.pdf").write_text("x")
        with pytest.raises(InputError, match=r"holds no text \(only 1 \.pdf\); \.txt, \.jsonl"):
            list(read_records(tmp_path))

    def test_a_file_of_another_kind(self, tmp_path):
        (tmp_path / "a.pdf").write_text("x")
        with pytest.raises(InputError, match=r"a\.pdf is of no kind that can be read"):
            list(read_records(tmp_path / "a.pdf"))

    def test_a_parquet_file_without_the_column_names_those_it_has(self, tmp_path):
        pq.write_table(pa.table({"title": ["a"], "body": ["b"]}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=r"no column 'text'; its columns are \['body', 'title'\]"):
            list(read_records(tmp_path))

    def test_a_parquet_column_of_numbers(self, tmp_path):
        pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
        with pytest.raises(InputError, match="is of type int64; it must be text"):
            list(read_records(tmp_path))


class TestStrictReading:
    def test_blank_documents_are_left_out(self, tmp_path):
        write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": " \n"}, {"text": ""}, {"text": "two"}])
        assert list(read_texts(tmp_path)) == ["one", "two"]

    @pytest.mark.parametrize("content", ["", " \n\t\n"])
    def test_a_corpus_without_text_is_refused(self, tmp_path, content):
        (tmp_path / "a.txt").write_text(content)
        with pytest.raises(InputError, match="holds no text: every file is empty or blank"):
            list(read_texts(tmp_path))

    def test_a_problem_is_refused_with_file_and_line(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n{"text"\n')
        with pytest.raises(InputError, match=r"^a\.jsonl:2: the line is no JSON.*validate_data"):
            list(read_texts(tmp_path))

    def test_a_nul_byte_is_refused_with_file_and_line(self, tmp_path):
        (tmp_path / "a.txt").write_text("one\ntwo\nth\0ree")
        with pytest.raises(InputError, match=r"^a\.txt:1: NUL byte in line 3 of the text"):
            list(read_texts(tmp_path))
