"""The stage validate_data from end to end: clean documents, held-out text, quarantine, Data Docs, and when it fails."""

import gzip
import json

import pytest

from modelcore import storage
from modelcore.data.corpus import read_documents
from modelcore.errors import InputError
from modelcore.stages.stage import StageSummary
from modelcore.stages.validate_data import validate_data
from tests.servers.faulty_proxy import Answer

LINE = "A line of prose, long enough to be told from any other one: number "


def prose(first, last):
    return "".join(f"{LINE}{number}.\n" for number in range(first, last))


def write_jsonl(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


class Outcome:
    def __init__(self, folder):
        self.folder = folder
        self.outputs = {
            "train_out": folder / "train",
            "heldout_out": folder / "heldout",
            "quarantine_out": folder / "quarantine",
            "docs_out": folder / "docs",
        }

    def validate(self, **arguments):
        return validate_data(**self.outputs, summary=self.folder / "summary.json", **arguments).results

    @property
    def train(self):
        return list(read_documents(self.folder / "train"))

    @property
    def heldout(self):
        return list(read_documents(self.folder / "heldout"))

    @property
    def quarantine(self):
        lines = (self.folder / "quarantine" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def outcome(tmp_path):
    return Outcome(tmp_path / "run")


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text(prose(0, 100))
    (folder / "b.txt").write_text(prose(100, 200))
    return folder


@pytest.fixture
def heldout(tmp_path):
    path = tmp_path / "heldout.txt"
    path.write_text(prose(1000, 1050))
    return path


def test_clean_text_passes_unchanged_with_its_origin(corpus, heldout, outcome):
    results = outcome.validate(corpus=str(corpus), heldout=str(heldout))
    assert outcome.train == [(prose(0, 100), "a.txt", 1), (prose(100, 200), "b.txt", 1)]
    assert outcome.heldout == [(prose(1000, 1050), "heldout.txt", 1)]
    assert outcome.quarantine == []
    assert (results["documents"], results["bad_rows"], results["heldout_chosen"]) == (3, 0, "given")
    assert results["train_bytes"] == len(prose(0, 200))
    assert StageSummary.load(outcome.folder / "summary.json").results == results
    assert (outcome.folder / "docs" / "index.html").is_file()
    assert "every document is clean" in (outcome.folder / "docs" / "summary.html").read_text()


def test_of_few_documents_the_end_of_each_is_held_out(corpus, outcome):
    results = outcome.validate(corpus=str(corpus), heldout_fraction=0.1)
    assert results["heldout_chosen"] == "end of each document"
    assert [text for text, _, _ in outcome.train] == [prose(0, 90), prose(100, 190)]
    assert [text for text, _, _ in outcome.heldout] == [prose(90, 100), prose(190, 200)]


def test_of_many_documents_whole_ones_are_held_out(tmp_path, outcome):
    texts = [prose(number, number + 1) for number in range(200)]
    write_jsonl(tmp_path / "corpus.jsonl", texts)
    results = outcome.validate(corpus=str(tmp_path / "corpus.jsonl"), heldout_fraction=0.2)
    assert results["heldout_chosen"] == "whole documents"
    train, heldout = ([text for text, _, _ in part] for part in (outcome.train, outcome.heldout))
    assert sorted(train + heldout) == sorted(texts)
    assert 20 <= len(heldout) <= 60


def test_bad_rows_go_to_quarantine_with_source_row_reasons_and_a_preview(tmp_path, heldout, outcome):
    write_jsonl(tmp_path / "corpus" / "a.jsonl", [prose(number, number + 1) for number in range(100)])
    with open(tmp_path / "corpus" / "a.jsonl", "ab") as file:
        file.write(
            b'{"text": "caf\xe9"}\n{"text": \n{"body": "x"}\n' + json.dumps({"text": prose(5, 6)}).encode() + b"\n"
        )
    (tmp_path / "corpus" / "b.txt").write_text("NUL \0 byte")
    (tmp_path / "corpus" / "c.txt").write_text("")
    results = outcome.validate(corpus=str(tmp_path / "corpus"), heldout=str(heldout), max_bad_fraction=0.06)
    found = [(line["source"], line["row"], line["reasons"]) for line in outcome.quarantine]
    assert found == [
        ("a.jsonl", 101, ["encoding"]),
        ("a.jsonl", 102, ["schema"]),
        ("a.jsonl", 103, ["schema"]),
        ("a.jsonl", 104, ["duplicate"]),
        ("b.txt", 1, ["nul_bytes"]),
        ("c.txt", 1, ["empty"]),
    ]
    details = [line["details"][0] for line in outcome.quarantine]
    assert "byte 0xe9 at offset" in details[0]
    assert "no JSON" in details[1]
    assert details[2] == "no field 'text' among ['body']"
    assert details[3] == "same text as a.jsonl:6"
    assert outcome.quarantine[0]["preview"] == '{"text": "caf\\xe9"}\n'
    assert outcome.quarantine[3]["preview"] == prose(5, 6)
    assert len(outcome.train) == 100
    assert results["bad_rows"] == 6
    assert (results["bad_schema"], results["bad_duplicate"]) == (2, 1)


def test_past_the_threshold_the_stage_fails_in_one_line_and_shows_why(corpus, heldout, outcome):
    (corpus / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError) as caught:
        outcome.validate(corpus=str(corpus), heldout=str(heldout), max_bad_fraction=0.2)
    message = str(caught.value)
    assert message.startswith(
        "1 of 4 documents are bad (1 encoding), more than max_bad_fraction=0.2: "
        "c.txt:1 (byte 0xff at offset 0 is not UTF-8 (invalid start byte)); see "
    )
    assert "quarantine.jsonl" in message
    assert "\n" not in message
    assert [line["source"] for line in outcome.quarantine] == ["c.txt"]
    assert (outcome.folder / "docs" / "index.html").is_file()
    assert "1 of 4 documents are bad" in (outcome.folder / "docs" / "summary.html").read_text()
    assert not (outcome.folder / "train").exists()


def test_what_was_refused_is_counted_and_named_at_the_end(corpus, heldout, outcome, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MODELCORE_CACHE", str(tmp_path / "cache"))
    whole = gzip.compress(prose(500, 600).encode())
    (corpus / "broken.txt.gz").write_bytes(whole[:-20])
    for number in range(6):
        (corpus / f"empty{number}.txt").touch()
    for _ in ("validated", "from the cache"):
        results = outcome.validate(corpus=str(corpus), heldout=str(heldout), max_bad_fraction=0.9)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if " WARNING " in line]
        assert " WARNING refused=7 documents=10: broken.txt.gz:1 (the file cannot be read on from here: " in line
        assert "; empty3.txt:1 (nothing but white space) and 2 more; see " in line
        assert line.endswith("quarantine.jsonl")
        assert results["refused"] in line


def test_a_failure_leaves_the_clean_documents_of_an_earlier_run(corpus, heldout, outcome):
    outcome.validate(corpus=str(corpus), heldout=str(heldout))
    before = outcome.train
    (corpus / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError):
        outcome.validate(corpus=str(corpus), heldout=str(heldout))
    assert outcome.train == before


def test_held_out_text_that_is_also_trained_on_is_refused(corpus, tmp_path, outcome):
    (tmp_path / "heldout.txt").write_text(prose(50, 100))
    with pytest.raises(InputError, match=r"1 of 3 documents are bad \(1 contamination\)"):
        outcome.validate(corpus=str(corpus), heldout=str(tmp_path / "heldout.txt"))
    (line,) = outcome.quarantine
    assert (line["part"], line["source"], line["reasons"]) == ("heldout", "heldout.txt", ["contamination"])


def test_a_line_of_50_mb_goes_to_quarantine(corpus, heldout, outcome):
    (corpus / "long.txt").write_bytes(b"x" * 50_000_000)
    outcome.validate(corpus=str(corpus), heldout=str(heldout), max_bad_fraction=0.5)
    (line,) = outcome.quarantine
    assert (line["source"], line["reasons"]) == ("long.txt", ["length"])
    assert len(line["preview"]) == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"1 of 1 documents are bad \(1 empty\)"),
        ("one line only", "the corpus is too small to hold out a part of it"),
    ],
)
def test_a_corpus_without_enough_text_is_refused(tmp_path, outcome, content, message):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        outcome.validate(corpus=str(tmp_path / "a.txt"))


def test_a_folder_without_files_is_refused(tmp_path, outcome):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no text"):
        outcome.validate(corpus=str(tmp_path / "empty"))


def test_a_file_of_no_lines_holds_no_document(tmp_path, outcome):
    (tmp_path / "corpus.jsonl").touch()
    with pytest.raises(InputError, match="the corpus holds no document: every file is empty; see "):
        outcome.validate(corpus=str(tmp_path / "corpus.jsonl"))


def test_an_empty_name_is_not_the_working_folder(outcome):
    with pytest.raises(InputError, match="corpus is empty; give a file"):
        outcome.validate(corpus="")


def test_a_missing_path_is_refused(tmp_path, outcome):
    with pytest.raises(InputError, match="nowhere does not exist"):
        outcome.validate(corpus=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heldout_fraction": 0.0}, r"heldout_fraction=0\.0 must lie between 0 and 1"),
        ({"max_bad_fraction": 1.5}, r"max_bad_fraction=1\.5 must lie from 0 to 1"),
    ],
)
def test_fractions_that_are_none_are_refused(corpus, outcome, arguments, message):
    with pytest.raises(InputError, match=message):
        outcome.validate(corpus=str(corpus), **arguments)


def test_a_second_run_on_the_same_text_is_taken_from_the_cache(corpus, heldout, outcome, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELCORE_CACHE", str(tmp_path / "cache"))
    results = outcome.validate(corpus=str(corpus), heldout=str(heldout))
    again = Outcome(tmp_path / "again")
    assert again.validate(corpus=str(corpus), heldout=str(heldout)) == results
    assert StageSummary.load(again.folder / "summary.json").cached
    assert again.train == outcome.train
    assert (again.folder / "docs" / "index.html").is_file()
    (corpus / "b.txt").write_text(prose(300, 400))
    assert again.validate(corpus=str(corpus), heldout=str(heldout)) != results


def test_nothing_temporary_is_left_behind(corpus, outcome):
    outcome.validate(corpus=str(corpus))
    assert {path.name for path in outcome.folder.iterdir()} == {
        "train", "heldout", "quarantine", "docs", "summary.json",
    }  # fmt: skip


def test_a_corpus_on_s3_is_gone_on_with_after_an_interruption_and_nothing_of_it_stays(
    outcome, corpus, s3_bucket, s3_proxy, s3_server, tmp_path, monkeypatch
):
    uri = f"s3://{s3_bucket}/texts"
    storage.upload_directory(corpus, uri)
    s3_server.client().put_object(Bucket=s3_bucket, Key="test/held.txt", Body=prose(5000, 5400).encode())
    work = tmp_path / "work"
    monkeypatch.setenv("MODELCORE_WORK", str(work))
    s3_proxy.fail(
        *[Answer(503, "SlowDown")] * 4, when=lambda request: request.method == "GET" and "held" in request.path
    )
    with pytest.raises(InputError, match=rf"s3://{s3_bucket}/test/held.txt: .*SlowDown"):
        outcome.validate(corpus=uri, heldout=f"s3://{s3_bucket}/test/held.txt")
    assert [path.name for path in (work / ".train.downloads").iterdir()] == [".heldout.partial"]
    found = outcome.validate(corpus=uri, heldout=f"s3://{s3_bucket}/test/held.txt")
    assert not any(work.iterdir())
    here = Outcome(tmp_path / "here")
    (tmp_path / "held.txt").write_bytes(prose(5000, 5400).encode())
    assert here.validate(corpus=str(corpus), heldout=str(tmp_path / "held.txt")) == found
    assert (here.train, here.heldout) == (outcome.train, outcome.heldout)
