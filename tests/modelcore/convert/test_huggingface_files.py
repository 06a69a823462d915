"""Hugging Face folders of every kind that is out there: shards, old names, copies of tied heads; and damaged ones."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from modelcore.convert.huggingface import read_huggingface, write_huggingface
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig

SIZES = {"vocab_size": 31, "context_length": 16, "n_layers": 2, "d_model": 16, "n_heads": 4, "d_ff": 24}
TOKENS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def theirs():
    """A Llama of transformers."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=31, max_position_embeddings=16, num_hidden_layers=2, hidden_size=16, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=24, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip


@pytest.fixture
def folder(tmp_path, theirs):
    """It, saved, to damage."""
    theirs.save_pretrained(tmp_path)
    return tmp_path


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder, function):
    tensors = load_file(folder / "model.safetensors")
    save_file(function(tensors) or tensors, folder / "model.safetensors")


@torch.no_grad()
def assert_same(model, theirs):
    assert (model(TOKENS) - theirs(TOKENS).logits).abs().max() <= 1e-4


def test_a_model_in_shards_is_read(tmp_path, theirs):
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(read_huggingface(tmp_path), theirs)


def test_gpt2_files_without_prefix_and_with_masks_are_read(tmp_path):
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=16, n_layer=1, n_embd=16, n_head=2)).eval()
    theirs.save_pretrained(tmp_path)
    mask = torch.ones(16, 16, dtype=torch.bool).tril()[None, None]
    rewrite(
        tmp_path,
        lambda tensors: (
            {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
            | {"h.0.attn.bias": mask, "h.0.attn.masked_bias": torch.tensor(-1e4)}
        ),
    )
    assert_same(read_huggingface(tmp_path), theirs)


def test_the_wavelengths_in_old_llama_files_are_passed_over(folder, theirs):
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert_same(read_huggingface(folder), theirs)


def test_the_base_of_rope_is_read_from_old_and_new_fields(folder):
    change(folder, rope_parameters=None, rope_theta=7e4)
    assert read_huggingface(folder).config.rope_theta == 7e4
    change(folder, rope_parameters={"rope_type": "default", "rope_theta": 9e4}, rope_theta=7e4)
    assert read_huggingface(folder).config.rope_theta == 9e4


def test_a_copy_of_a_tied_head_is_taken_if_it_is_one(folder):
    change(folder, tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        read_huggingface(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    model = read_huggingface(folder)
    assert model.head.weight is model.embedding.weight


def test_a_tied_head_is_written_once(tmp_path):
    write_huggingface(tmp_path, GPT(GPTConfig(n_kv_heads=2, tie_embeddings=True, **SIZES)), None)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_the_dtype_is_kept(tmp_path):
    write_huggingface(tmp_path, GPT(GPTConfig(n_kv_heads=2, **SIZES)).bfloat16(), None)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert read_huggingface(tmp_path).embedding.weight.dtype == torch.bfloat16


def test_a_pickle_is_refused_by_name(folder, theirs):
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        read_huggingface(folder)


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_huggingface(folder)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or no safetensors file"):
        read_huggingface(folder)


def test_a_truncated_shard_is_named(tmp_path, theirs):
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{shard.name} is truncated"):
        read_huggingface(tmp_path)


def test_a_missing_shard_is_named(tmp_path, theirs):
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(InputError, match=rf"{shard.name} is missing"):
        read_huggingface(tmp_path)


@pytest.mark.parametrize("place", ["../other.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_that_leads_out_of_the_folder_or_to_a_pickle_is_refused(folder, place):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": place}}))
    with pytest.raises(InputError, match=r"shards must be \.safetensors files in the same folder"):
        read_huggingface(folder)


def test_a_missing_tensor_is_named(folder):
    rewrite(folder, lambda t: {name: t[name] for name in t if name != "model.norm.weight"})
    with pytest.raises(InputError, match=r"lacks 1 of the tensors needed: model\.norm\.weight"):
        read_huggingface(folder)


def test_an_unexpected_tensor_is_named(folder):
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(4)}))
    with pytest.raises(InputError, match=r"match nothing in the model: model\.layers\.0\.self_attn\.q_norm\.weight"):
        read_huggingface(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    change(folder, num_key_value_heads=4)
    with pytest.raises(InputError, match=r"self_attn\.k_proj\.weight has shape \(8, 16\); \(16, 16\) is needed"):
        read_huggingface(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' cannot be read; supported: gpt2, llama"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "RoPE scaling 'longrope' is not supported"),
        ({"rope_scaling": {"type": "su"}}, "RoPE scaling 'su' is not supported; readable: default, linear, dynamic"),
        ({"rope_scaling": {"type": "linear"}}, "the factor of RoPE scaling is None; it must be a number of 1 or more"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, "the factor of RoPE scaling is 0.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'silu' is supported"),
        ({"head_dim": 8}, "head_dim 8 times num_attention_heads 4 is not hidden_size 16"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"rms_norm_eps": "small"}, "wrong type"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantized"),
        ({"num_attention_heads": 3}, "head_dim 4 times num_attention_heads 3"),
    ],
)
def test_a_variant_that_would_compute_something_else_is_refused(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(InputError, match=rf"config\.json: .*{message}"):
        read_huggingface(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'; readable: gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ],
)
def test_a_gpt2_variant_that_would_compute_something_else_is_refused(tmp_path, fields, message):
    config = GPT2Config(vocab_size=31, n_positions=16, n_layer=1, n_embd=16, n_head=2, **fields)
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    with pytest.raises(InputError, match=message):
        read_huggingface(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig(n_kv_heads=4, positions="alibi", **SIZES),
        GPTConfig(n_kv_heads=4, norm="layernorm", **SIZES),
        GPTConfig(n_kv_heads=4, positions="learned", norm="layernorm", feedforward="gelu_tanh", **SIZES),
    ],
    ids=["alibi", "rope with layernorm", "gpt2 without biases"],
)
def test_a_model_without_a_counterpart_is_refused_in_one_line(config, tmp_path):
    with pytest.raises(InputError, match="has no Hugging Face counterpart here: GPT-2 has learned positions"):
        write_huggingface(tmp_path, GPT(config), None)
    assert not list(tmp_path.iterdir())
