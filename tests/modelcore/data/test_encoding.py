"""Encoding a corpus: in order, each document ended, and the same on one core as on many."""

import numpy as np

from modelcore.data import encoding
from modelcore.data.encoding import encode_documents

TEXTS = [f"Document number {number}, of {number % 7} words" + " word" * (number % 7) for number in range(40)]


def joined(batches):
    batches = list(batches)
    return (
        np.concatenate([batch.ids for batch in batches]),
        np.concatenate([batch.lengths for batch in batches]),
        sum(batch.text_bytes for batch in batches),
    )


def test_documents_come_in_order_each_with_its_end(tokenizer):
    ids, lengths, size = joined(encode_documents(TEXTS, tokenizer))
    assert lengths.tolist() == [len(tokenizer.encode(text)) + 1 for text in TEXTS]
    assert ids.tolist() == [i for text in TEXTS for i in [*tokenizer.encode(text), tokenizer.eos_id]]
    assert size == sum(len(text.encode()) for text in TEXTS)


def test_several_processes_give_what_one_gives(tokenizer, monkeypatch):
    ids, lengths, size = joined(encode_documents(TEXTS, tokenizer))
    monkeypatch.setattr(encoding, "BATCH_BYTES", 100)
    monkeypatch.setattr(encoding, "LARGE_BYTES", 300)
    monkeypatch.setattr(encoding.os, "sched_getaffinity", lambda _: {0, 1})
    many = joined(encode_documents(TEXTS, tokenizer))
    assert np.array_equal(many[0], ids)
    assert np.array_equal(many[1], lengths)
    assert many[2] == size


def test_the_corpus_is_not_read_far_ahead(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_BYTES", 100)
    read = []
    batches = encode_documents((read.append(text) or text for text in TEXTS), tokenizer)
    next(batches)
    assert len(read) < 10


def test_no_document_gives_no_batch(tokenizer):
    assert list(encode_documents([], tokenizer)) == []
