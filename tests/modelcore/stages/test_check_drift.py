"""Whether to train anew: the corpus against what the champion was trained on, asked of a real registry."""

import json
from pathlib import Path

import pytest
import torch

from modelcore.convert import convert
from modelcore.data.shards import write_tokens
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import save_model
from modelcore.stages.check_drift import REFERENCE, check_drift, write_reference
from modelcore.stages.register_model import register_model
from modelcore.stages.stage import StageSummary
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

NOVEL = Path("examples/austen/train/emma.txt").read_text(encoding="utf-8")
CODE = Path(json.__file__).read_text(encoding="utf-8") * 3


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Registers a model that was trained on a text: ``register(name, text, bits_per_byte)``."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tokenizer").mkdir()
    train_sentencepiece([NOVEL[:60_000]], folder / "tokenizer", vocab_size=400, algorithm="unigram", seed=0)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    torch.manual_seed(0)
    (folder / "native").mkdir()
    config = GPTConfig(tokenizer.vocab_size, 16, n_layers=1, d_model=16, n_heads=2, n_kv_heads=2, d_ff=32)
    save_model(folder / "native", GPT(config), tokenizer.model_file)
    convert(folder / "native", folder / "export", "huggingface")

    def register(name, text, bits, reference=True):
        place = folder / f"{name}-{bits}"
        (place / REFERENCE).mkdir(parents=True)
        write_tokens(place / "tokens", tokenizer, train=[text], heldout=["Emma."])
        if reference:
            write_reference(place / REFERENCE, place / "tokens")
        else:
            (place / REFERENCE).rmdir()
        figures = {"bits_per_byte": bits, "heldout_digest": "a" * 64}
        (place / "evaluation.json").write_text(json.dumps(figures))
        register_model(export=folder / "export", evaluation=place, out=place / "registration.json", model_name=name)

    return register


def corpus(folder, text):
    folder.mkdir()
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return str(folder)


def test_without_a_champion_there_is_nothing_to_keep(tmp_path, mlflow_client):
    summary = check_drift(corpus=corpus(tmp_path / "new", NOVEL), out=tmp_path / "page.html", model_name="nobody")
    assert (summary.results["decision"], summary.results["reason"]) == ("train", "there is no champion")


def test_of_a_champion_from_before_there_were_profiles_nothing_is_known(tmp_path, mlflow_client, registered):
    registered("old", NOVEL, 2.0, reference=False)
    summary = check_drift(corpus=corpus(tmp_path / "new", NOVEL), out=tmp_path / "page.html", model_name="old")
    assert summary.results["decision"] == "train"
    assert summary.results["reason"] == "nothing is known of the text that version 1 was trained on"


def test_text_of_the_same_kind_keeps_the_champion_and_other_text_does_not(tmp_path, mlflow_client, registered):
    registered("kinds", NOVEL[:300_000], 5.5)  # about what weights that learned nothing need
    limits = {"model_name": "kinds", "score_bytes": 2_000}
    same = check_drift(
        corpus=corpus(tmp_path / "same", NOVEL[300_000:600_000]),
        out=tmp_path / "same.html",
        summary=tmp_path / "summary.json",
        **limits,
    )
    assert same.results["decision"] == "keep"
    assert abs(same.results["bits_per_byte_rise"]) < 0.1
    assert same.results["champion_version"] == 1
    assert StageSummary.load(tmp_path / "summary.json") == same

    other = check_drift(corpus=corpus(tmp_path / "other", CODE), out=tmp_path / "other.html", **limits)
    assert other.results["decision"] == "train"
    assert "other tokens" in other.results["reason"]
    assert other.results["token_distance"] > 2 * same.results["token_distance"]

    page = (tmp_path / "other.html").read_text(encoding="utf-8")
    assert "<h1>Train anew</h1>" in page
    assert page.count("<svg") == 1
    assert "<script" not in page
    experiments = [experiment.experiment_id for experiment in mlflow_client.search_experiments()]
    run = mlflow_client.search_runs(experiments, "tags.reason LIKE '%other tokens%'")[0]
    assert {file.path for file in mlflow_client.list_artifacts(run.info.run_id)} >= {"drift", "token_drift.png"}


def test_text_that_the_waiting_candidate_was_trained_on_is_not_trained_on_again(tmp_path, mlflow_client, registered):
    registered("waits", NOVEL[:100_000], 2.0)
    registered("waits", CODE, 3.0)  # worse, so the first stays champion
    new = corpus(tmp_path / "new", CODE)
    summary = check_drift(corpus=new, out=tmp_path / "page.html", model_name="waits", score_bytes=0)
    assert summary.results["decision"] == "keep"
    assert "but candidate version 2 was trained on such text" in summary.results["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_token_distance": 0.0}, "max_token_distance is 0.0; it must be a number above 0"),
        ({"sample_bytes": 0}, "sample_bytes=0 must be above 0"),
        ({"model_name": "a/b"}, "model name 'a/b' is not usable"),
        ({"corpus": "/no/such/text"}, "/no/such/text does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(tmp_path, mlflow_client, options, message):
    with pytest.raises(InputError, match=message):
        check_drift(**{"corpus": corpus(tmp_path / "new", NOVEL), "out": tmp_path / "page.html"} | options)


def test_without_a_registry_nobody_can_be_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is not set"):
        check_drift(corpus=corpus(tmp_path / "new", NOVEL), out=tmp_path / "page.html")
