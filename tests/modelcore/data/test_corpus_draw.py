"""The files from which documents are drawn, on a disk and on a real S3."""

import gzip

import pytest

from modelcore import storage
from modelcore.data.corpus_draw import draw_files
from modelcore.errors import InputError


@pytest.fixture
def corpus(tmp_path):
    """Forty files of a thousand bytes each, in folders, and what is no text."""
    folder = tmp_path / "corpus"
    for number in range(40):
        file = folder / f"part-{number % 4}" / f"{number:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{number:02} " + "x" * 997)
    (folder / "notes.md").write_text("no text")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "more.jsonl.gz").write_bytes(gzip.compress(b'{"text": "zipped"}\n'))
    return folder


@pytest.fixture(params=["folder", "s3"])
def address(request, corpus):
    if request.param == "folder":
        return str(corpus)
    address = f"s3://{request.getfixturevalue('s3_bucket')}/text"
    storage.upload_directory(corpus, address)
    return address


def test_a_small_corpus_is_read_as_a_whole_with_one_file_at_a_time_on_the_disk(address, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    files, texts = draw_files(address), []
    for record in files.read(scratch):
        texts.append(record.text)
        assert sum(path.is_file() for path in scratch.rglob("*")) <= 1
    assert texts[0] == "zipped"
    assert [text[:2] for text in texts[1:]] == [f"{n:02}" for part in range(4) for n in range(part, 40, 4)]
    assert (len(files.addresses), files.found) == (41, 41)
    assert list(scratch.iterdir()) == []


def test_of_a_large_one_files_are_drawn_until_there_is_enough(address, tmp_path):
    drawn = [set(draw_files(address, read_bytes=10_000, seed=seed).addresses) for seed in (0, 0, 1, 2)]
    assert all(10 <= len(names) <= 11 for names in drawn)
    assert drawn[0] == drawn[1] != drawn[2] != drawn[3]
    assert len(set.union(*drawn)) > 15, "not the first ones"
    assert draw_files(address, read_bytes=10_000).found == 41


def test_the_same_files_are_drawn_wherever_the_corpus_lies(corpus, s3_bucket):
    storage.upload_directory(corpus, f"s3://{s3_bucket}/text")
    here, there = (draw_files(str(place), read_bytes=5_000) for place in (corpus, f"s3://{s3_bucket}/text"))
    assert list(here.addresses) == list(there.addresses)


def test_one_object_is_a_corpus_and_nothing_is_none(corpus, s3_bucket, tmp_path):
    storage.upload_directory(corpus, f"s3://{s3_bucket}/text")
    one = draw_files(f"s3://{s3_bucket}/text/part-1/01.txt")
    assert [record.text[:2] for record in one.read(tmp_path / "scratch")] == ["01"]
    with pytest.raises(InputError, match=r"s3://.*/none does not exist"):
        draw_files(f"s3://{s3_bucket}/none")
    with pytest.raises(InputError, match=r"notes\.md holds no text"):
        draw_files(f"s3://{s3_bucket}/text/notes.md")
    with pytest.raises(InputError, match="/none does not exist"):
        draw_files(str(tmp_path / "none"))
