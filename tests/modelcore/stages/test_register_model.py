"""The registry: a version for every run, @candidate always, @champion by the gate's rule."""

import json
from pathlib import Path

import pytest
import torch

from modelcore import registry
from modelcore.convert import convert
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import save_model
from modelcore.stages.register_model import register_model
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

TEXT = "a" * 64
OTHER_TEXT = "b" * 64


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two small Hugging Face folders that differ in their weights."""
    folder = tmp_path_factory.mktemp("exports")
    novel = Path("examples/austen/train/emma.txt").read_text(encoding="utf-8")[:20_000]
    (folder / "tokenizer").mkdir()
    train_sentencepiece([novel], folder / "tokenizer", vocab_size=400, algorithm="bpe", seed=0)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    config = GPTConfig(tokenizer.vocab_size, 16, n_layers=1, d_model=16, n_heads=2, n_kv_heads=2, d_ff=32)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        (folder / f"native{seed}").mkdir()
        save_model(folder / f"native{seed}", GPT(config), tokenizer.model_file)
        convert(folder / f"native{seed}", folder / f"export{seed}", "huggingface")
        made.append(folder / f"export{seed}")
    return made


def register(tmp_path, export, bits, digest=TEXT, name="gpt"):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir(exist_ok=True)
    (evaluation / "evaluation.json").write_text(json.dumps({"bits_per_byte": bits, "heldout_digest": digest}))
    summary = register_model(export=export, evaluation=evaluation, out=tmp_path / "registration.json", model_name=name)
    assert json.loads((tmp_path / "registration.json").read_text()) == summary.results
    return summary.results


def test_the_first_is_candidate_and_champion_and_loads_from_the_registry(tmp_path, exports, mlflow_client):
    import mlflow

    made = register(tmp_path, exports[0], 2.0, name="first")
    assert (made["version"], made["champion"]) == (1, True)
    pipeline = mlflow.transformers.load_model("models:/first@champion")
    assert pipeline("She", max_new_tokens=2)[0]["generated_text"].startswith("She")


def test_a_worse_one_is_candidate_only_and_a_better_one_takes_the_crown(tmp_path, exports, mlflow_client):
    assert register(tmp_path, exports[0], 2.0, name="crown")["champion"]
    worse = register(tmp_path, exports[1], 2.1, name="crown")
    assert (worse["champion"], worse["champion_version"]) == (False, 1)
    assert mlflow_client.get_model_version_by_alias("crown", "candidate").version == 2
    assert mlflow_client.get_model_version_by_alias("crown", "champion").version == 1
    better = register(tmp_path, exports[0], 1.9, name="crown")
    assert (better["champion"], better["champion_version"]) == (True, 3)
    assert mlflow_client.get_model_version_by_alias("crown", "champion").version == 3


def test_a_score_on_another_text_is_not_compared(tmp_path, exports, mlflow_client):
    register(tmp_path, exports[0], 2.0, name="texts")
    other = register(tmp_path, exports[1], 1.0, OTHER_TEXT, name="texts")
    assert other["champion"] is False
    assert "not comparable" in other["decision"]


def test_run_again_for_the_same_pipeline_run_it_makes_no_second_version(tmp_path, exports, mlflow_client, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "one-run")
    first = register(tmp_path, exports[0], 2.0, name="again")
    second = register(tmp_path, exports[0], 2.0, name="again")
    assert (first["version"], second["version"]) == (1, 1)
    assert second["champion"] is True


def test_without_a_tracking_server_it_says_what_to_set(tmp_path, exports):
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is not set"):
        register(tmp_path, exports[0], 2.0)


@pytest.mark.parametrize("bits", [float("nan"), float("inf")])
def test_a_model_with_no_finite_score_is_not_registered(tmp_path, exports, mlflow_client, bits):
    with pytest.raises(InputError, match="bits per byte"):
        register(tmp_path, exports[0], bits, name="broken")
    assert not mlflow_client.search_registered_models("name = 'broken'")


def test_a_champion_whose_score_somebody_changed_stays(tmp_path, exports, mlflow_client):
    register(tmp_path, exports[0], 2.0, name="tagged")
    mlflow_client.set_model_version_tag("tagged", "1", "bits_per_byte", "about two")
    second = register(tmp_path, exports[1], 1.0, name="tagged")
    assert (second["champion"], second["champion_version"], second["champion_bits_per_byte"]) == (False, 1, None)
    assert "the champion's score is unknown" in second["decision"]


def test_a_registry_that_cannot_be_used_is_said_in_one_line(tmp_path, exports, mlflow_client, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"MLflow at sqlite.* cannot be used: .*127\.0\.0\.1:9") as caught:
        register(tmp_path, exports[0], 2.0)
    assert "\n" not in str(caught.value)


def test_an_export_that_is_none_is_named(tmp_path, exports, mlflow_client):
    with pytest.raises(InputError, match="nowhere is no exported model"):
        register(tmp_path, tmp_path / "nowhere", 2.0)


def test_an_evaluation_that_is_none_is_named(tmp_path, exports, mlflow_client):
    with pytest.raises(InputError, match=r"evaluation\.json is no evaluation"):
        register_model(export=exports[0], evaluation=tmp_path, out=tmp_path / "r.json", model_name="gpt")


@pytest.mark.parametrize("name", ["", "a/b", "a'b"])
def test_a_name_the_registry_would_refuse_is_refused_clearly(tmp_path, exports, mlflow_client, name):
    with pytest.raises(InputError, match="model name"):
        register(tmp_path, exports[0], 2.0, name=name)


def test_a_registered_version_comes_back_as_the_folder_it_was(tmp_path, exports, mlflow_client):
    """In one folder again, tokenizer and weights, as servers of models look for them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = register(tmp_path, exports[0], 2.0, name="served")
    folder = registry.download_huggingface("served", made["version"], tmp_path / "into")
    text = "She was not handsome"
    before, after = (AutoTokenizer.from_pretrained(place)(text, return_tensors="pt") for place in (exports[0], folder))
    assert before["input_ids"].tolist() == after["input_ids"].tolist()
    with torch.no_grad():
        expected, got = (AutoModelForCausalLM.from_pretrained(place)(**before).logits for place in (exports[0], folder))
    assert torch.equal(expected, got)


def test_a_version_without_a_tokenizer_is_not_taken_for_one_that_can_be_served(tmp_path, mlflow_client):
    import mlflow

    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="other",
            python_model=lambda model_input: model_input,
            registered_model_name="other",
            pip_requirements=[],
        )
    with pytest.raises(InputError, match="no Hugging Face model with a tokenizer"):
        registry.download_huggingface("other", 1, tmp_path / "into")
