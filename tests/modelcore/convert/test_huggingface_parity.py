"""The same weights give the same logits and the same greedy text here and in transformers, in both directions."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from modelcore.convert import convert
from modelcore.convert.huggingface import read_huggingface, write_huggingface
from modelcore.gptx import GPT, GPTConfig

TOLERANCE = 1e-4


def gpt2(**changes):
    sizes = {"vocab_size": 97, "n_positions": 40, "n_layer": 2, "n_embd": 36, "n_head": 3}
    return GPT2Config(**sizes | {"bos_token_id": 1, "eos_token_id": None} | changes)


def llama(**changes):
    sizes = {
        "vocab_size": 101,
        "max_position_embeddings": 40,
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    return LlamaConfig(**sizes | {"bos_token_id": 1, "eos_token_id": None} | changes)


THEIRS = {
    "gpt2": gpt2(),
    "gpt2, untied": gpt2(tie_word_embeddings=False),
    "gpt2, exact gelu, narrow feed-forward": gpt2(activation_function="gelu", n_inner=50),
    "gpt2, other epsilon": gpt2(layer_norm_epsilon=1e-3),
    "llama, multi-head": llama(),
    "llama, grouped-query": llama(num_key_value_heads=2),
    "llama, multi-query": llama(num_key_value_heads=1),
    "llama, 8 queries a key": llama(num_attention_heads=8, num_key_value_heads=1),
    "llama, tied": llama(tie_word_embeddings=True),
    "llama, biases": llama(attention_bias=True, mlp_bias=True),
    "llama, other theta": llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "llama, other epsilon": llama(rms_norm_eps=1e-3),
}

LLAMA = {"context_length": 40, "n_layers": 2, "d_model": 48, "n_heads": 4, "d_ff": 56}
GPT2 = {
    "context_length": 40, "n_layers": 2, "d_model": 36, "n_heads": 3, "n_kv_heads": 3, "d_ff": 50,
    "positions": "learned", "norm": "layernorm", "attention_bias": True, "feedforward_bias": True, "norm_bias": True,
}  # fmt: skip
OURS = {
    "gpt2": GPTConfig(vocab_size=97, **GPT2, feedforward="gelu_tanh", tie_embeddings=True),
    "gpt2, untied": GPTConfig(vocab_size=97, **GPT2, feedforward="gelu_tanh"),
    "gpt2, exact gelu": GPTConfig(vocab_size=97, **GPT2, feedforward="gelu", tie_embeddings=True),
    "llama, multi-head": GPTConfig(vocab_size=101, n_kv_heads=4, **LLAMA),
    "llama, grouped-query, tied": GPTConfig(vocab_size=101, n_kv_heads=2, tie_embeddings=True, **LLAMA),
    "llama, multi-query": GPTConfig(vocab_size=101, n_kv_heads=1, norm_eps=1e-3, rope_theta=5e5, **LLAMA),
    "llama, biases": GPTConfig(vocab_size=101, n_kv_heads=2, attention_bias=True, feedforward_bias=True, **LLAMA),
}


@torch.no_grad()
def randomized(model):
    """The model with every parameter drawn anew, so that biases and norms count too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
    return model.eval()


def assert_equal(ours, theirs):
    tokens = torch.randint(ours.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() <= TOLERANCE
        prompt = tokens[:, :5]
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        text = prompt
        for _ in range(20):
            text = torch.cat((text, ours(text)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(text, expected)


@pytest.mark.parametrize("config", THEIRS.values(), ids=THEIRS)
def test_a_model_that_transformers_saved_computes_the_same_here(config, tmp_path):
    theirs = randomized((GPT2LMHeadModel if config.model_type == "gpt2" else LlamaForCausalLM)(config))
    theirs.save_pretrained(tmp_path)
    assert_equal(read_huggingface(tmp_path), theirs)


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_a_model_written_here_computes_the_same_in_transformers(config, tmp_path):
    ours = randomized(GPT(config))
    write_huggingface(tmp_path, ours, None)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal(ours, theirs.eval())


@pytest.mark.parametrize("config", OURS.values(), ids=OURS)
def test_there_and_back_again_changes_no_bit(config, tmp_path):
    ours = randomized(GPT(config))
    write_huggingface(tmp_path, ours, None)
    back = read_huggingface(tmp_path)
    assert back.config == config
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_what_transformers_saved_goes_native_and_back_to_the_same_weights(tmp_path):
    theirs = randomized(LlamaForCausalLM(llama(num_key_value_heads=2)))
    theirs.save_pretrained(tmp_path / "theirs")
    to_native = convert(tmp_path / "theirs", tmp_path / "native", "native")
    back = convert(tmp_path / "native", tmp_path / "back", "huggingface")
    assert max(to_native.max_logit_difference, back.max_logit_difference) <= TOLERANCE
    assert to_native.verified_by == back.verified_by == "transformers"
    again = LlamaForCausalLM.from_pretrained(tmp_path / "back")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in theirs.state_dict().items())
