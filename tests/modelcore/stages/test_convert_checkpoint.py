"""The stage convert_checkpoint: a folder that transformers loads, with the adapter in it, or nothing."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelcore.adapters import LoRAConfig, add_lora, load_adapter, lora_parameters, save_adapter
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import load_model, save_model
from modelcore.stages.convert_checkpoint import convert_checkpoint
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.training import train_sentencepiece

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune must want a wife."
CONFIG = GPTConfig(
    vocab_size=300, context_length=32, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, tie_embeddings=True
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A native model with a tokenizer in ``checkpoint`` and an adapter of it in ``adapter``."""
    root = tmp_path_factory.mktemp("models")
    for name in ("tokenizer", "checkpoint", "adapter"):
        (root / name).mkdir()
    train_sentencepiece([TEXT] * 3, root / "tokenizer", vocab_size=300, algorithm="bpe", seed=0)
    torch.manual_seed(0)
    model = GPT(CONFIG)
    save_model(root / "checkpoint", model, root / "tokenizer" / "tokenizer.model")
    add_lora(model, LoRAConfig(rank=2))
    for parameter in lora_parameters(model):
        parameter.data.normal_(std=0.2)
    save_adapter(root / "adapter", model, base=root / "checkpoint")
    return root


@pytest.fixture(scope="module")
def export(folders):
    """The converted folder and the stage's summary."""
    summary = convert_checkpoint(checkpoint=folders / "checkpoint", adapter=folders / "adapter", out=folders / "export")
    return folders / "export", summary


def test_transformers_loads_the_tuned_model_and_gives_its_logits(folders, export):
    theirs = AutoModelForCausalLM.from_pretrained(export[0]).eval()
    ours = load_adapter(folders / "adapter", load_model(folders / "checkpoint"))
    tokens = torch.randint(300, (2, 32))
    assert (theirs(tokens).logits - ours(tokens)).abs().max() <= 1e-4
    assert (load_model(folders / "checkpoint")(tokens) - ours(tokens)).abs().max() > 1e-2


def test_transformers_loads_the_tokenizer_and_gives_its_ids(folders, export):
    theirs, ours = AutoTokenizer.from_pretrained(export[0]), Tokenizer.load(folders / "checkpoint")
    assert theirs(TEXT)["input_ids"] == ours.encode(TEXT)
    assert theirs.decode(ours.encode(TEXT)) == TEXT
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)


def test_transformers_generates_from_the_folder_alone(export):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export[0]), AutoTokenizer.from_pretrained(export[0])
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    text = model.generate(**tokenizer(TEXT[:20], return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert text.shape[1] <= len(tokenizer(TEXT[:20])["input_ids"]) + 5


def test_every_file_may_be_read_by_whom_the_folder_may(export):
    assert {path.stat().st_mode & 0o777 for path in export[0].iterdir()} == {0o666 & export[0].stat().st_mode}


def test_the_summary_says_what_was_written_and_how_well_it_agrees(export):
    results = export[1].results
    assert results["verified_by"] == "transformers"
    assert results["max_logit_difference"] <= 1e-4
    assert results["source_format"] == "native"
    names = sorted(path.name for path in export[0].iterdir())
    assert results["files"] == ", ".join(names)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(names)


def test_the_export_becomes_a_native_model_again_with_its_tokenizer(export, tmp_path):
    summary = convert_checkpoint(checkpoint=export[0], out=tmp_path / "native", to="native")
    assert summary.results["source_format"] == "huggingface"
    assert load_model(tmp_path / "native").config == CONFIG
    assert Tokenizer.load(tmp_path / "native").encode(TEXT)


def test_converting_twice_gives_the_same_bytes(folders, export, tmp_path):
    convert_checkpoint(checkpoint=folders / "checkpoint", adapter=folders / "adapter", out=tmp_path / "again")
    for path in export[0].iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_an_adapter_of_another_model_is_refused_and_the_export_of_before_stays(folders, export, tmp_path):
    torch.manual_seed(1)
    save_model(tmp_path, GPT(CONFIG), folders / "tokenizer" / "tokenizer.model")
    before = json.loads((export[0] / "config.json").read_text())
    with pytest.raises(InputError, match="trained on another model"):
        convert_checkpoint(checkpoint=tmp_path, adapter=folders / "adapter", out=export[0])
    assert json.loads((export[0] / "config.json").read_text()) == before
