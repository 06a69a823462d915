"""Both stages on Spark, in local mode: byte for byte what the single-machine stages write, whatever the input."""

import gzip
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelcore.data.corpus import read_documents
from modelcore.errors import InputError
from modelcore.stages.tokenize_corpus import tokenize_corpus
from modelcore.stages.train_tokenizer import train_tokenizer
from modelcore.stages.validate_data import validate_data

LINE = "A line of prose, long enough to be told from any other one: number "
SMALL = 1 << 16  # bytes a portion, so that small files are cut too

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    from modelcore.spark import separation, tokenization

    for function in (separation.separate, tokenization.write_tokens):
        monkeypatch.setitem(function.__kwdefaults__, "portion_bytes", SMALL)


def prose(first, last):
    return "".join(f"{LINE}{number}.\n" for number in range(first, last))


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def written(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def validate(engine, folder, **arguments):
    """The stage's figures or its failure, and the bytes of all that it wrote but the Data Docs' own pages."""
    outputs = {f"{name}_out": folder / engine / name for name in ("train", "heldout", "quarantine", "docs")}
    try:
        told = validate_data(engine=engine, **outputs, **arguments).results
    except InputError as error:
        told = str(error).replace(str(folder / engine), "OUT")
    files = {name: content for name, content in written(folder / engine).items() if not name.startswith("docs/")}
    page = (folder / engine / "docs" / "summary.html").read_text(encoding="utf-8")
    runs = len(list((folder / engine / "docs" / "validations").rglob("*.html")))
    return told, files, page.replace(str(folder / engine), "OUT"), runs


def assert_same(tmp_path, **arguments):
    local, spark = (validate(engine, tmp_path / "run", **arguments) for engine in ("local", "spark"))
    assert spark == local
    return spark[0]


def test_a_corpus_of_every_kind_of_file_and_fault(tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "deep").mkdir(parents=True)
    write_jsonl(corpus / "a.jsonl", [prose(number, number + 3) for number in range(0, 3000, 3)])  # in several portions
    (corpus / "b.txt").write_text("\ufeff" + prose(3000, 3100), encoding="utf-8")
    (corpus / "c.txt").write_bytes(b"")
    (corpus / "d.txt").write_bytes(b"caf\xe9\n" + prose(1, 2).encode())
    (corpus / "e <f>.txt").write_text("NUL \0 byte")
    (corpus / "f.jsonl").write_text('{"text": 3}\n\n[]\n{"text": "\\ud800"}\n{"body"\n{"text": " "}\n')
    with gzip.open(corpus / "g.txt.gz", "wt") as file:
        file.write(prose(5000, 5100))
    (corpus / "h.txt.gz").write_bytes((corpus / "g.txt.gz").read_bytes()[:200])  # breaks off
    (corpus / "i.jsonl.gz").write_bytes(b"no gzip at all")
    write_jsonl(corpus / "j.jsonl", [prose(9, 12), prose(6000, 6010), prose(3000, 3100)])  # two copies
    rows = [prose(number, number + 2) for number in range(7000, 9000, 2)] + [None, ""]
    pq.write_table(pa.table({"text": rows}), corpus / "deep" / "k.parquet", row_group_size=100)
    whole = (corpus / "deep" / "k.parquet").read_bytes()
    (corpus / "deep" / "l.parquet").write_bytes(whole[: len(whole) // 2])
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 2000] = bytes(2000)  # some pages in the middle, the footer is whole
    (corpus / "m.parquet").write_bytes(broken)
    results = assert_same(tmp_path, corpus=str(corpus), max_bad_fraction=0.6)
    assert results["heldout_chosen"] == "whole documents"
    assert results["bad_duplicate"] > 2
    assert results["bad_schema"] >= 7


@pytest.mark.slow
def test_few_documents_lose_the_end_of_each(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(3):
        (corpus / f"{number}.txt").write_text(prose(1500 * number, 1500 * number + 1500))
    assert assert_same(tmp_path, corpus=str(corpus))["heldout_chosen"] == "end of each document"


@pytest.mark.slow
def test_given_text_that_leaked_into_training_is_refused_alike(tmp_path):
    write_jsonl(tmp_path / "corpus.jsonl", [prose(number, number + 4) for number in range(0, 4000, 4)])
    write_jsonl(
        tmp_path / "heldout.jsonl",
        [prose(number, number + 4) for number in range(10_000, 12_000, 4)] + [prose(8, 12), prose(10_000, 10_004)],
    )
    results = assert_same(tmp_path, corpus=str(tmp_path / "corpus.jsonl"), heldout=str(tmp_path / "heldout.jsonl"))
    assert (results["bad_contamination"], results["bad_duplicate"]) == (1, 1)


@pytest.mark.slow
def test_an_unfit_corpus_fails_with_the_same_line(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text(prose(0, 100))
    (corpus / "b.txt").write_bytes(b"\xff\xfe")
    assert assert_same(tmp_path, corpus=str(corpus)).startswith("1 of 2 documents are bad")


def test_a_parquet_file_without_the_column_is_told_in_one_line(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "corpus.parquet")
    messages = set()
    for engine in ("local", "spark"):
        outputs = {f"{name}_out": tmp_path / engine / name for name in ("train", "heldout", "quarantine", "docs")}
        with pytest.raises(InputError) as caught:
            validate_data(corpus=str(tmp_path / "corpus.parquet"), engine=engine, **outputs)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert "has no column 'text'" in messages.pop()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(prose(0, 2000))
    train_tokenizer(corpus=folder / "text.txt", out=folder / "tokenizer", vocab_size=320)
    return folder / "tokenizer"


def tokenize(engine, folder, **arguments):
    results = tokenize_corpus(engine=engine, out=folder / engine, **arguments).results
    return {name: value for name, value in results.items() if name != "mb_per_second"}, written(folder / engine)


def test_token_folders_are_the_same(tmp_path, tokenizer, monkeypatch):
    from modelcore.data import shards
    from modelcore.spark import tokenization

    for function in (shards.write_tokens, tokenization.write_tokens):  # several files of tokens a split
        monkeypatch.setitem(function.__kwdefaults__, "shard_tokens", 10_000)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [prose(number, number + 2) for number in range(0, 6000, 2)]
    pq.write_table(pa.table({"text": rows}), corpus / "a.parquet", row_group_size=200)
    (corpus / "b.txt").write_text(" \n")
    write_jsonl(corpus / "c.jsonl", [*rows[:900], "", "é ü 漢字 " * 50])
    (tmp_path / "heldout.txt").write_text(prose(10_000, 10_100))
    inputs = {"corpus": corpus, "heldout": tmp_path / "heldout.txt", "tokenizer": tokenizer}
    local, spark = (tokenize(engine, tmp_path / "run", **inputs) for engine in ("local", "spark"))
    assert spark == local
    assert len([name for name in spark[1] if name.startswith("train/")]) > 3


@pytest.mark.parametrize("content", [b"caf\xe9", b"NUL \0", b" \n"])
def test_text_that_is_not_clean_is_told_with_the_same_line(tmp_path, tokenizer, content):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_bytes(content)
    (tmp_path / "heldout.txt").write_text(prose(0, 100))
    messages = set()
    for engine in ("local", "spark"):
        with pytest.raises(InputError) as caught:
            tokenize(
                engine,
                tmp_path / "run",
                corpus=tmp_path / "corpus",
                heldout=tmp_path / "heldout.txt",
                tokenizer=tokenizer,
            )
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.slow
def test_filters_report_what_each_removed_and_keep_the_first_of_near_duplicates(tmp_path):
    draw = random.Random(3)
    words = (
        "the of and that have with being house garden morning letter sister answer father window evening " * 2
    ).split()
    texts = [" ".join(f"{draw.choice(words)}{draw.randrange(40)}" for _ in range(120)) for _ in range(300)]
    near = texts[5].rsplit(" ", 3)[0] + " and so on"
    german = "Es ist eine allgemein anerkannte Wahrheit, dass ein Junggeselle im Besitz eines Vermögens " * 8
    write_jsonl(tmp_path / "corpus.jsonl", [*texts[:200], near, *texts[200:], german, texts[7], near + " end"])
    outputs = {f"{name}_out": tmp_path / "run" / name for name in ("train", "heldout", "quarantine", "docs")}
    settings = {"engine": "spark", "languages": "en", "near_duplicates": 0.8}
    results = validate_data(corpus=str(tmp_path / "corpus.jsonl"), **settings, **outputs).results
    report = json.loads((tmp_path / "run" / "docs" / "filters.json").read_text(encoding="utf-8"))
    assert list(report) == ["language", "near_duplicate"]
    assert report["language"]["documents"] == results["removed_language_documents"] == 1
    assert report["language"]["bytes"] == results["removed_language_bytes"] == len(german.encode())
    assert report["language"]["samples"][0]["preview"].startswith("Es ist eine")
    removed = [(sample["document"], sample["detail"]) for sample in report["near_duplicate"]["samples"]]
    assert [name for name, _ in removed] == ["corpus.jsonl:201", "corpus.jsonl:304"]
    assert all(re.fullmatch(r"(8|9)\d% the same as corpus.jsonl:6", detail) for _, detail in removed)
    assert results["bad_duplicate"] == 1
    assert results["train_documents"] + results["heldout_documents"] == 300
    kept = [text for part in ("train", "heldout") for text, _, _ in read_documents(tmp_path / "run" / part)]
    assert sorted(kept) == sorted(texts)


def test_filters_need_spark(tmp_path):
    outputs = {f"{name}_out": tmp_path / name for name in ("train", "heldout", "quarantine", "docs")}
    with pytest.raises(InputError, match="engine='local' has no filters"):
        validate_data(corpus=str(tmp_path), languages="en", **outputs)
