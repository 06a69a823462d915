"""The clean corpus as parquet: what goes in comes out, and any reader of parquet can read it."""

import pyarrow.parquet as pq

from modelcore.data import corpus
from modelcore.data.corpus import CorpusWriter, read_documents
from modelcore.data.sources import read_texts

DOCUMENTS = [("first\nsecond", "a.txt", 1), ("größer 🙂", "b.jsonl", 2), ("third", "b.jsonl", 3)]


def write(folder, documents):
    with CorpusWriter(folder) as writer:
        for document in documents:
            writer.write(*document)
    return writer


def test_documents_come_back_in_order_with_their_origin(tmp_path):
    writer = write(tmp_path, DOCUMENTS)
    assert list(read_documents(tmp_path)) == DOCUMENTS
    assert list(read_texts(tmp_path)) == [text for text, _, _ in DOCUMENTS]
    assert (writer.documents, writer.bytes) == (3, sum(len(text.encode()) for text, _, _ in DOCUMENTS))


def test_the_digest_tells_texts_and_their_bounds_apart(tmp_path):
    digests = []
    for name, texts in (("a", ["ab", "c"]), ("b", ["ab", "c"]), ("c", ["a", "bc"])):
        (tmp_path / name).mkdir()
        digests.append(write(tmp_path / name, [(text, "x", 1) for text in texts]).digest)
    assert digests[0] == digests[1] != digests[2]


def test_row_groups_are_bounded_so_that_readers_need_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "ROW_GROUP_BYTES", 100)
    write(tmp_path, [("x" * 30, "a.txt", row) for row in range(40)])
    metadata = pq.ParquetFile(tmp_path / corpus.FILE).metadata
    assert metadata.num_row_groups == 10
    assert {metadata.row_group(group).num_rows for group in range(10)} == {4}


def test_an_empty_corpus_can_be_written_and_read(tmp_path):
    write(tmp_path, [])
    assert list(read_documents(tmp_path)) == []
