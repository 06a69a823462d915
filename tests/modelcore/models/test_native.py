"""The native model folder: what is written is what is read, and what is wrong is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelcore.adapters import LoRAConfig, add_lora
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import load_model, save_model, tokenizer_path

TIED = GPTConfig(
    vocab_size=37, context_length=16, n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_ff=24, tie_embeddings=True
)
UNTIED = GPTConfig(vocab_size=37, context_length=16, n_layers=1, d_model=16, n_heads=4, n_kv_heads=4, d_ff=24)
GPT2 = GPTConfig(
    vocab_size=37, context_length=16, n_layers=1, d_model=16, n_heads=4, n_kv_heads=4, d_ff=24,
    positions="learned", norm="layernorm", feedforward="gelu_tanh", attention_bias=True, feedforward_bias=True,
    norm_bias=True, tie_embeddings=True,
)  # fmt: skip
ALIBI = GPTConfig(
    vocab_size=37, context_length=16, n_layers=1, d_model=16, n_heads=4, n_kv_heads=4, d_ff=24, positions="alibi"
)
TOKENS = torch.arange(10).reshape(2, 5)


@pytest.fixture
def folder(tmp_path):
    """A saved model to damage."""
    torch.manual_seed(0)
    save_model(tmp_path, GPT(TIED), None)
    return tmp_path


def rewrite(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("config", [TIED, UNTIED, GPT2, ALIBI], ids=["tied", "untied", "gpt2", "alibi"])
def test_a_model_comes_back_with_the_same_logits_bit_for_bit(config, tmp_path):
    model = GPT(config).eval()
    save_model(tmp_path, model, None)
    loaded = load_model(tmp_path)
    assert loaded.config == config
    assert not loaded.training
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_a_tied_head_is_stored_once_and_is_one_parameter_again(folder):
    assert "head.weight" not in load_file(folder / "model.safetensors")
    loaded = load_model(folder)
    assert loaded.head.weight is loaded.embedding.weight


def test_the_dtype_is_kept(tmp_path):
    save_model(tmp_path, GPT(TIED).bfloat16(), None)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.bfloat16}


def test_loading_draws_no_random_number(folder):
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_a_loaded_model_leaves_the_file_alone(folder):
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in load_model(folder).parameters():
            parameter.fill_(1.0)
    assert (folder / "model.safetensors").read_bytes() == before


def test_the_tokenizer_travels_with_the_model(tmp_path):
    (tmp_path / "source.model").write_bytes(b"pieces")
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", GPT(TIED), tmp_path / "source.model")
    assert tokenizer_path(tmp_path / "model").read_bytes() == b"pieces"


def test_a_missing_tokenizer_is_named(folder):
    with pytest.raises(InputError, match=r"holds no tokenizer: neither tokenizer\.model, nor tokenizer\.json"):
        tokenizer_path(folder)


def test_a_model_with_unmerged_adapters_is_not_saved_as_if_it_were_plain(tmp_path):
    with pytest.raises(ValueError, match="merge its adapters"):
        save_model(tmp_path, add_lora(GPT(TIED), LoRAConfig(rank=2)), None)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_model(tmp_path)


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_model(folder)


def test_a_folder_under_the_name_of_the_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"model\.safetensors is a folder"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or no safetensors file"):
        load_model(folder)


def test_a_pickle_under_the_name_of_the_weights_is_refused(folder):
    torch.save({"embedding.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors is no safetensors file but a pickle, which can run code"):
        load_model(folder)


def test_truncated_weights_are_not_taken_for_a_pickle(folder):
    path = folder / "model.safetensors"
    header = json.dumps({"__metadata__": {"format": "x" * 600}}).encode().ljust(640)  # a length that begins with 0x80
    path.write_bytes(len(header).to_bytes(8, "little") + header[:100])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or no safetensors file"):
        load_model(folder)


def test_sizes_that_no_machine_has_are_refused(folder):
    rewrite(folder / "config.json", lambda c: c["model"].update(d_model=2**28, n_heads=1, n_kv_heads=1))
    with pytest.raises(InputError, match="parameters does not fit into memory"):
        load_model(folder)


def test_more_layers_than_there_are_tensors_are_refused_before_they_are_built(folder):
    rewrite(folder / "config.json", lambda c: c["model"].update(n_layers=2**30))
    with pytest.raises(
        InputError, match=r"model\.safetensors holds \d+ tensors; a model of 1073741824 layers has more"
    ):
        load_model(folder)


def damage(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_missing_tensor_is_named(folder):
    damage(folder, lambda tensors: tensors.pop("norm.weight"))
    with pytest.raises(InputError, match=r"lacks 1 of the tensors needed: norm\.weight"):
        load_model(folder)


def test_an_unexpected_tensor_is_named(folder):
    damage(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(InputError, match="1 tensors that match nothing in the model: extra"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    damage(folder, lambda tensors: tensors.update({"norm.weight": torch.zeros(17)}))
    with pytest.raises(InputError, match=r"norm\.weight has shape \(17,\); \(16,\) is needed"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_a_tensor_of_another_type_is_named(folder, dtype):
    damage(folder, lambda tensors: tensors.update({"norm.weight": torch.zeros(16, dtype=dtype)}))
    with pytest.raises(InputError, match=r"norm\.weight is torch\.(int64|float64)"):
        load_model(folder)


def test_mixed_types_are_refused(folder):
    damage(folder, lambda tensors: tensors.update({"norm.weight": torch.zeros(16, dtype=torch.bfloat16)}))
    with pytest.raises(InputError, match="one type is needed"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "has format version 2; this program reads version 1"),
        (lambda c: c.update(format="other"), "does not describe a modelcore model"),
        (lambda c: c["model"].update(flux=1), "unknown model field 'flux'"),
        (lambda c: c["model"].pop("d_ff"), "model field 'd_ff' is missing"),
        (lambda c: c["model"].update(d_model="wide"), "d_model is 'wide'"),
        (lambda c: c["model"].update(dropout="x"), "dropout is 'x'; it must be a number"),
        (lambda c: c["model"].update(rope_scaling={"kind": [], "factor": 2.0}), "wrong type"),
        (lambda c: c.update(model=[]), "no 'model' section"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_file(folder, change, message):
    rewrite(folder / "config.json", change)
    with pytest.raises(InputError, match=rf"config\.json.*{message}"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"[" * 200_000, b'{"version": ' + b"9" * 5000 + b"}"])
def test_a_configuration_that_is_no_json_object_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json (is no JSON|holds a JSON list)"):
        load_model(folder)
