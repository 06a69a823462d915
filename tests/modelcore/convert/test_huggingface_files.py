"""Hugging Face folders of every kind that is out there: shards, old names, copies of tied heads; and damaged ones."""

import json

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
)

from modelcore.convert import convert
from modelcore.convert.huggingface import read_huggingface, write_huggingface
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import load_model

SIZES = {"vocab_size": 31, "context_length": 16, "n_layers": 2, "d_model": 16, "n_heads": 4, "d_ff": 24}
NO_SPECIAL = {"bos_token_id": 1, "eos_token_id": None}
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


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("max_shard_bytes", [1, 3000, 5000])
def test_shards_are_cut_and_listed_as_hugging_face_does(tmp_path, kind, max_shard_bytes):
    gpt2 = {"positions": "learned", "norm": "layernorm", "feedforward": "gelu_tanh", "attention_bias": True}
    gpt2 |= {"feedforward_bias": True, "norm_bias": True, "n_kv_heads": 4, "tie_embeddings": True}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES | (gpt2 if kind == "gpt2" else {"n_kv_heads": 2}))).eval()
    (tmp_path / "whole").mkdir()
    (tmp_path / "shards").mkdir()
    write_huggingface(tmp_path / "whole", model, None)
    write_huggingface(tmp_path / "shards", model, None, max_shard_bytes=max_shard_bytes)

    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    sizes = {}
    for name, file in index["weight_map"].items():
        tensors = load_file(tmp_path / "shards" / file)
        assert torch.equal(tensors[name], whole[name])
        sizes[file] = [tensor.nbytes for tensor in tensors.values()]
    assert sorted(sizes) == [f"model-{i:05d}-of-{len(sizes):05d}.safetensors" for i in range(1, len(sizes) + 1)]
    assert all(sum(size) <= max_shard_bytes or len(size) == 1 for size in sizes.values())
    assert_same(model, AutoModelForCausalLM.from_pretrained(tmp_path / "shards").eval())
    assert torch.equal(read_huggingface(tmp_path / "shards")(TOKENS), model(TOKENS))


def test_a_small_model_is_one_file_without_an_index(tmp_path):
    write_huggingface(tmp_path, GPT(GPTConfig(n_kv_heads=2, **SIZES)), None)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip


def tokenizer_json(size):
    """The tokenizers library's file of so many tokens, the last of them added later."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({f"t{i}": i for i in range(size - 1)}, []))
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer.to_str()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", tokenizer_json(29)),
        ("vocab.json", json.dumps({f"t{i}": i for i in range(29)})),
        ("tokenizer.json", json.dumps({"model": {"vocab": [[f"t{i}", -1.0] for i in range(29)]}})),
    ],
    ids=["tokenizer.json", "vocab.json", "unigram"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_the_vocabulary_is_cut_off_where_the_tokenizer_proves_it(tmp_path, caplog, name, content, tied):
    sizes = {"vocab_size": 31, "n_positions": 16, "n_layer": 1, "n_embd": 16, "n_head": 2, "eos_token_id": None}
    theirs = GPT2LMHeadModel(GPT2Config(tie_word_embeddings=tied, **sizes)).eval()
    theirs.save_pretrained(tmp_path)
    assert read_huggingface(tmp_path).config.vocab_size == 31
    (tmp_path / name).write_text(content)
    with caplog.at_level("INFO"):
        model = read_huggingface(tmp_path)
    assert "the vocabulary has 31 rows and its tokenizer 29 tokens; the rows beyond are padding" in caplog.text
    assert model.config.vocab_size == 29
    assert sum(parameter.numel() for parameter in model.parameters()) == model.config.num_params()
    assert (model(TOKENS) - theirs(TOKENS).logits[..., :29]).abs().max() <= 1e-4


def test_a_folder_of_padded_vocabulary_becomes_native_and_is_compared_with_its_owner(tmp_path):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])  # the 257th token
    sizes = {"vocab_size": 320, "n_positions": 16, "n_layer": 1, "n_embd": 16, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(bos_token_id=256, eos_token_id=256, **sizes)).save_pretrained(tmp_path / "theirs")
    tokenizer.save(str(tmp_path / "theirs" / "tokenizer.json"))
    done = convert(tmp_path / "theirs", tmp_path / "native", "native")
    assert done.verified_by == "transformers"
    assert load_model(tmp_path / "native").config.vocab_size == 257
    convert(tmp_path / "native", tmp_path / "back", "huggingface")
    assert AutoTokenizer.from_pretrained(tmp_path / "back").encode("ab c") == tokenizer.encode("ab c").ids


def test_tokens_added_later_are_no_padding(folder):
    (folder / "tokenizer.json").write_text(tokenizer_json(28))
    (folder / "added_tokens.json").write_text('{"<tool>": 30}')
    assert read_huggingface(folder).config.vocab_size == 31
    (folder / "added_tokens.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"29": {"content": "<tool>"}}}')
    assert read_huggingface(folder).config.vocab_size == 30


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "\x80\x04pickle", "is no JSON"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0', "is no JSON"),
        ("tokenizer.json", "{}", "has no vocabulary under 'model'"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "0x"}}}', "has a token whose id is no number"),
        ("vocab.json", "[]", "holds a JSON list"),
        ("tokenizer.model", "text", "is no SentencePiece model"),
        ("generation_config.json", "{", "is no JSON"),
    ],
)
def test_a_damaged_file_beside_the_weights_is_refused_by_name(folder, tmp_path, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} {message}"):
        convert(folder, tmp_path / "out", "native")


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


@pytest.mark.parametrize("ends", [[2, 5], [5], 5])
def test_further_ends_of_a_text_stay_where_the_tokenizers_own_is_among_them(tmp_path, tokenizer, randomized, ends):
    model = randomized(GPTConfig(n_kv_heads=2, **SIZES | {"vocab_size": tokenizer.vocab_size}))
    write_huggingface(tmp_path, model, tokenizer, {"eos_token_id": ends})
    written = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    assert written == ([2, 5] if ends == [2, 5] else tokenizer.eos_id)
    assert tokenizer.eos_id == 2


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
        ({"rms_norm_eps": "small"}, "norm_eps is 'small'; it must be a number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it must be true or false"),
        ({"rope_scaling": "linear"}, "wrong type"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantized"),
        ({"num_attention_heads": 3}, "head_dim 4 times num_attention_heads 3"),
    ],
)
def test_a_variant_that_would_compute_something_else_is_refused(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(InputError, match=rf"config\.json: .*{message}"):
        read_huggingface(folder)


@pytest.mark.parametrize(
    ("config", "own", "general"),
    [
        (
            GPT2Config(vocab_size=31, n_positions=16, n_layer=2, n_embd=12, n_head=3, **NO_SPECIAL),
            ("n_embd", "n_head", "n_layer", "n_positions"),
            ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings"),
        ),
        (
            MptConfig(vocab_size=31, max_seq_len=16, n_layers=2, d_model=12, n_heads=3, **NO_SPECIAL),
            ("d_model", "n_heads", "n_layers"),
            ("hidden_size", "num_attention_heads", "num_hidden_layers"),
        ),
    ],
    ids=["gpt2", "mpt"],
)
def test_sizes_are_read_under_the_names_that_all_models_have_in_transformers(tmp_path, config, own, general):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    renamed = fields | {new: fields[old] for old, new in zip(own, general, strict=True)}
    for kept in ({}, dict.fromkeys(own, 1)):  # the general name counts where both are given
        changed = {name: value for name, value in renamed.items() if name not in own} | kept
        (tmp_path / "config.json").write_text(json.dumps(changed))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert_same(read_huggingface(tmp_path), theirs)


def test_more_layers_than_there_are_tensors_are_refused_before_they_are_built(folder):
    change(folder, num_hidden_layers=2**30)
    with pytest.raises(InputError, match=r"model\.safetensors holds 21 tensors; a model of 1073741824 layers has more"):
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
