"""Duplicates are found among any number of documents, and told by the first that had the text."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from modelcore.data.duplicates import FirstDocuments

documents = st.lists(st.tuples(st.sampled_from(["a.txt", "b:c.jsonl", "d"]), st.integers(0, 25)), max_size=60)


def digest(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


@given(documents=documents, sizes=st.lists(st.integers(0, 9), max_size=20))
def test_the_first_document_is_told_whatever_the_portions(documents, sizes):
    names = [f"{source}:{row}" for row, (source, _) in enumerate(documents, 1)]
    digests = [digest(text) for _, text in documents]
    first: dict[str, str] = {}
    expected = [None if first.setdefault(of_text, name) == name else first[of_text]
                for name, of_text in zip(names, digests, strict=True)]  # fmt: skip
    seen, found = FirstDocuments(), []
    for size in [*sizes, len(documents)]:
        found += seen.add(names[:size], digests[:size])
        names, digests = names[size:], digests[size:]
    assert found == expected


def test_some_twenty_bytes_of_a_document_are_kept():
    seen = FirstDocuments()
    for start in range(0, 20_000, 500):
        rows = range(start, start + 500)
        assert seen.add([f"a:{row}" for row in rows], [digest(row) for row in rows]) == [None] * 500
    assert sum(run.nbytes for run in seen._runs) == 20 * 20_000
    assert len(seen._runs) < 15
