import json
from pathlib import Path

import pytest

from modelcore.errors import InputError
from modelcore.stages.stage import StageSummary
from modelcore.stages.train_tokenizer import train_tokenizer
from modelcore.tokenizers import Tokenizer

NOVEL = Path(__file__).parents[3] / "examples" / "austen" / "train" / "emma.txt"


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "emma.txt").write_text(NOVEL.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    return folder


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_the_folder_holds_the_tokenizer_in_both_formats_and_a_report(corpus, tmp_path, algorithm):
    out = tmp_path / "tokenizer"
    summary = train_tokenizer(corpus=corpus, out=out, vocab_size=500, algorithm=algorithm, seed=0)
    tokenizer = Tokenizer.load(out)
    report = json.loads((out / "report.json").read_text())
    assert {file.name for file in out.iterdir()} == {
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "report.json",
    }
    assert tokenizer.vocab_size == summary.results["vocab_size"] == report["vocab_size"] == 500
    assert tokenizer.digest == summary.results["digest"] == report["digest"]
    assert report["algorithm"] == algorithm


def test_bytes_per_token_is_that_of_the_corpus(corpus, tmp_path):
    summary = train_tokenizer(corpus=corpus, out=tmp_path / "out", vocab_size=500)
    text = (corpus / "emma.txt").read_text()
    tokens = Tokenizer.load(tmp_path / "out").encode(text)
    assert summary.results["bytes_per_token"] == pytest.approx(len(text.encode()) / len(tokens), abs=1e-4)
    assert summary.results["corpus_bytes"] == summary.results["sampled_bytes"] == len(text.encode())
    assert summary.results["sampling"].startswith("none: the corpus has no more than")


def test_of_a_large_corpus_the_report_tells_how_much_was_used_and_how_it_was_drawn(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("modelcore.tokenizers.training.MAX_SAMPLE_BYTES", 30_000)
    summary = train_tokenizer(corpus=corpus, out=tmp_path / "out", vocab_size=400, algorithm="bpe", seed=3)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["corpus_bytes"] == summary.results["corpus_bytes"] > 59_000
    assert 20_000 < report["sampled_bytes"] <= 30_000
    assert report["sampling"] == summary.results["sampling"]
    assert (
        "passages of up to 4,096 characters, drawn from the whole corpus with equal chances (seed 3)"
        in report["sampling"]
    )


def test_token_lengths_count_every_piece_but_bytes_and_special_ones(corpus, tmp_path):
    lengths = train_tokenizer(corpus=corpus, out=tmp_path / "out", vocab_size=500).series["token_lengths"]
    assert sum(lengths["count"]) == 500 - 256 - 4
    assert lengths["length"] == sorted(lengths["length"])
    assert lengths["length"][0] == 1


def test_the_same_inputs_come_from_the_cache_with_the_same_figures(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELCORE_CACHE", str(tmp_path / "cache"))
    first = train_tokenizer(corpus=corpus, out=tmp_path / "first", vocab_size=400)
    second = train_tokenizer(corpus=corpus, out=tmp_path / "second", vocab_size=400, summary=tmp_path / "summary.json")
    other = train_tokenizer(corpus=corpus, out=tmp_path / "other", vocab_size=410)
    assert (first.cached, second.cached, other.cached) == (False, True, False)
    assert second.results == first.results
    assert second.series == first.series
    assert StageSummary.load(tmp_path / "summary.json").results == first.results
    for file in (tmp_path / "first").iterdir():
        assert (tmp_path / "second" / file.name).read_bytes() == file.read_bytes()


def test_a_tracked_run_gets_figures_picture_and_files(corpus, tmp_path, mlflow_client, request):
    train_tokenizer(corpus=corpus, out=tmp_path / "out", vocab_size=400)
    experiment = mlflow_client.get_experiment_by_name(request.node.nodeid)
    (run,) = mlflow_client.search_runs([experiment.experiment_id])
    assert run.data.params["vocab_size"] == "400"
    assert run.data.metrics["bytes_per_token"] > 1
    assert {file.path for file in mlflow_client.list_artifacts(run.info.run_id)} == {"token_lengths.png", "tokenizer"}


def test_a_corpus_too_small_for_the_vocabulary_leaves_what_was_there(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text('{"algorithm": "bpe"}')
    (out / "tokenizer.model").write_text("the old one")
    with pytest.raises(InputError, match="vocab_size 100000 is too large for this corpus, which supports at most"):
        train_tokenizer(corpus=corpus, out=out, vocab_size=100_000)
    assert (out / "tokenizer.model").read_text() == "the old one"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["corpus", "out"]


def test_an_unknown_algorithm_is_refused_with_those_there_are(corpus, tmp_path):
    with pytest.raises(InputError, match="algorithm is 'wordpiece'; it must be one of: unigram, bpe"):
        train_tokenizer(corpus=corpus, out=tmp_path / "out", algorithm="wordpiece")


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere"):
        train_tokenizer(corpus=tmp_path / "nowhere", out=tmp_path / "out")


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match="holds no text"):
        train_tokenizer(corpus=tmp_path / "corpus", out=tmp_path / "out")
