"""What has a counterpart in transformers, and what its layers are called there."""

import dataclasses
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from modelcore.adapters import LoRAConfig, add_lora, load_adapter, save_adapter
from modelcore.convert.huggingface import write_huggingface
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig, RopeScaling
from modelcore.models.architectures import ARCHITECTURES, architecture_of

SIZES = {"vocab_size": 31, "context_length": 16, "n_layers": 2, "d_model": 16, "n_heads": 4, "n_kv_heads": 4}
BIASES = {"attention_bias": True, "feedforward_bias": True, "norm_bias": True}
CONFIGS = {
    "gpt2": GPTConfig(**SIZES, d_ff=24, positions="learned", norm="layernorm", feedforward="gelu", **BIASES),
    "llama": GPTConfig(**SIZES, d_ff=24, rope_scaling=RopeScaling("linear", 2.0)),
    "mistral": GPTConfig(**SIZES, d_ff=24, sliding_window=5),
    "bloom": GPTConfig(
        **SIZES, d_ff=64, positions="alibi", norm="layernorm", feedforward="gelu_tanh", embedding_norm=True, **BIASES
    ),
    "mpt": GPTConfig(**SIZES, d_ff=64, positions="alibi", norm="layernorm", feedforward="gelu"),
}


def test_every_architecture_is_told_from_every_other():
    assert CONFIGS.keys() == ARCHITECTURES.keys()
    for name, config in CONFIGS.items():
        assert [other for other, architecture in ARCHITECTURES.items() if architecture.matches(config)] == [name]
        assert architecture_of(config).to_huggingface(config)["model_type"] == name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"sliding_window": 4}),
        ("gpt2", {"embedding_norm": True}),
        ("llama", {"embedding_norm": True}),
        ("mistral", {"attention_bias": True}),
        ("bloom", {"embedding_norm": False}),
        ("bloom", {"d_ff": 63}),
        ("bloom", {"n_kv_heads": 2}),
        ("bloom", {"sliding_window": 4}),
        ("mpt", {"norm_bias": True}),
        ("mpt", {"d_ff": 63}),
        ("mpt", {"feedforward": "gelu_tanh"}),
    ],
)
def test_a_variant_that_its_owner_does_not_have_has_no_counterpart(name, changes):
    config = dataclasses.replace(CONFIGS[name], **changes)
    with pytest.raises(
        InputError, match=r"has no Hugging Face counterpart here: GPT-2 has learned positions, .* Mistral"
    ):
        architecture_of(config)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm is True",
        ),
        ("mpt", {"attn_config": {"clip_qkv": 6}}, "clip_qkv is 6; only None is supported"),
        ("mpt", {"attn_config": {"alibi_bias_max": 16}}, "alibi_bias_max is 16; only 8 is supported"),
        ("mpt", {"attn_config": {"alibi": False}}, "alibi is False; only True is supported"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln is True; only False is supported"),
        ("mpt", {"attn_config": "torch"}, "attn_config is 'torch'; an object is needed"),
        ("mpt", {"expansion_ratio": 3}, "expansion_ratio is 3; only 4 is supported"),
        ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale is 'inv_sqrt_d_model'; only None is supported"),
        ("mpt", {"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'; only layernorm is supported"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; it must be a whole number of 1 or more"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
        (
            "llama",
            {"rope_parameters": {"full_attention": {"rope_type": "linear"}}},
            "rope_parameters differ from layer",
        ),
    ],
)
def test_a_file_that_its_owner_reads_otherwise_is_refused_by_its_field(name, fields, message):
    described = ARCHITECTURES[name].to_huggingface(CONFIGS[name])
    with pytest.raises(InputError, match=message):
        ARCHITECTURES[name].from_huggingface(described | {"rope_scaling": None} | fields)


def test_a_mistral_file_says_nothing_of_the_window_where_it_is_4096_and_null_where_there_is_none():
    described = ARCHITECTURES["mistral"].to_huggingface(CONFIGS["mistral"])
    del described["sliding_window"]
    assert ARCHITECTURES["mistral"].from_huggingface(described).sliding_window == 4096
    config = ARCHITECTURES["mistral"].from_huggingface(described | {"sliding_window": None})
    assert config.sliding_window is None
    assert architecture_of(config) is ARCHITECTURES["llama"]


def test_published_bloom_files_name_their_sizes_as_megatron_did():
    described = ARCHITECTURES["bloom"].to_huggingface(CONFIGS["bloom"])
    renamed = {"hidden_size": "n_embed", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
    old = {renamed.get(name, name): value for name, value in described.items()}
    assert ARCHITECTURES["bloom"].from_huggingface(old) == CONFIGS["bloom"]


@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        ({"type": "yarn", "original_max_position_embeddings": 4}, RopeScaling("yarn", 4.0, 4)),
        ({"rope_type": "yarn", "factor": 4.0, "finetuned": True}, RopeScaling("yarn", 4.0, 16)),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.0},
            RopeScaling("yarn", 4.0, 16, attention_factor=(0.07 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
        ),
    ],
    ids=["factor from the two contexts", "original context from the context", "DeepSeek's two numbers"],
)
def test_yarn_is_read_as_transformers_reads_what_is_left_out(rope, scaling):
    described = ARCHITECTURES["llama"].to_huggingface(CONFIGS["llama"]) | {"rope_scaling": rope}
    assert ARCHITECTURES["llama"].from_huggingface(described).rope_scaling == scaling


@pytest.mark.parametrize("name", CONFIGS)
def test_the_usual_targets_of_an_adapter_name_every_linear_layer_of_a_block(name):
    architecture = ARCHITECTURES[name]
    for projection in architecture.projections(CONFIGS[name]):
        for part in projection.parts:
            assert any(part == target or part.endswith(f".{target}") for target in architecture.LORA_TARGETS)


@pytest.mark.parametrize("name", ["mistral", "mpt"])
def test_adapters_of_the_newer_architectures_are_pefts_both_ways(name, tmp_path):
    torch.manual_seed(0)
    model, tokens = GPT(CONFIGS[name]).eval(), torch.arange(24).reshape(2, 12)
    write_huggingface(tmp_path, model, None)
    adapted = add_lora(model, LoRAConfig(rank=3, alpha=6.0))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    (tmp_path / "ours").mkdir()
    save_adapter(tmp_path / "ours", adapted)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "ours").eval()
    with torch.no_grad():
        assert (adapted(tokens) - theirs(tokens).logits).abs().max() <= 1e-4

    targets = list(ARCHITECTURES[name].LORA_TARGETS)
    config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    torch.manual_seed(0)
    read = load_adapter(tmp_path / "theirs", GPT(CONFIGS[name]).eval())
    with torch.no_grad():
        assert (read(tokens) - theirs(tokens).logits).abs().max() <= 1e-4


def test_an_adapter_of_bloom_whose_rows_lie_otherwise_is_refused_by_name():
    with pytest.raises(InputError, match=r"LoRA cannot adapt this architecture: self_attention\.query_key_value holds"):
        add_lora(GPT(CONFIGS["bloom"]), LoRAConfig(rank=2))
