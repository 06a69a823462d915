"""The stage tokenize_corpus: a token folder from clean documents, with figures, and refusals that name the fault."""

from itertools import pairwise

import pytest

from modelcore.data.corpus import CorpusWriter
from modelcore.data.shards import open_split
from modelcore.errors import InputError
from modelcore.stages.stage import StageSummary
from modelcore.stages.tokenize_corpus import tokenize_corpus
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

TEXTS = ["It is a truth universally acknowledged,\nthat a single man …\n", "größer 日本語"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece([TEXTS[0] * 20], folder, vocab_size=300, algorithm="bpe", seed=0)
    return folder


@pytest.fixture
def inputs(tmp_path, tokenizer_folder):
    for name, texts in (("train", TEXTS), ("heldout", ["Kept apart."])):
        (tmp_path / name).mkdir()
        with CorpusWriter(tmp_path / name) as writer:
            for row, text in enumerate(texts, 1):
                writer.write(text, "a.jsonl", row)
    return {"corpus": tmp_path / "train", "heldout": tmp_path / "heldout", "tokenizer": tokenizer_folder}


def test_the_tokens_stand_for_the_documents(inputs, tmp_path, tokenizer_folder):
    results = tokenize_corpus(**inputs, out=tmp_path / "tokens").results
    tokenizer = Tokenizer.load(tmp_path / "tokens")
    assert tokenizer.digest == Tokenizer.load(tokenizer_folder).digest
    split = open_split(tmp_path / "tokens", "train", tokenizer.digest)
    bounds = split.document_bounds()
    texts = [tokenizer.decode(split.window(a, b - a).tolist()) for a, b in pairwise(bounds)]
    assert texts == TEXTS
    assert results["train_tokens"] == split.n_tokens
    assert results["train_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert results["bytes_per_token"] == pytest.approx(results["train_bytes"] / split.n_tokens, abs=1e-4)
    assert results["heldout_documents"] == 1


def test_text_files_can_be_tokenized_without_validation(inputs, tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[0])
    tokenize_corpus(**inputs | {"corpus": str(tmp_path / "a.txt")}, out=str(tmp_path / "tokens"))
    assert open_split(tmp_path / "tokens", "train").n_bytes == len(TEXTS[0].encode())


def test_a_second_run_is_taken_from_the_cache(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELCORE_CACHE", str(tmp_path / "cache"))
    first = tokenize_corpus(**inputs, out=tmp_path / "one")
    second = tokenize_corpus(**inputs, out=tmp_path / "two", summary=tmp_path / "summary.json")
    assert (first.cached, second.cached) == (False, True)
    assert second.results == first.results == StageSummary.load(tmp_path / "summary.json").results
    assert open_split(tmp_path / "two", "train").digest == first.results["train_digest"]


@pytest.mark.parametrize("name", ["corpus", "heldout", "tokenizer"])
def test_a_missing_path_is_refused_by_name(inputs, tmp_path, name):
    with pytest.raises(InputError, match="nowhere does not exist"):
        tokenize_corpus(**inputs | {name: tmp_path / "nowhere"}, out=tmp_path / "tokens")


def test_a_corpus_without_text_is_refused(inputs, tmp_path):
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(InputError, match="holds no text"):
        tokenize_corpus(**inputs | {"corpus": tmp_path / "a.txt"}, out=tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
