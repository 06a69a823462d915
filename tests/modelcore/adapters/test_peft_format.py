"""Adapters go to PEFT and come from it with the same logits; those that do not fit are refused by name."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modelcore.adapters import LoRAConfig, add_lora, load_adapter, lora_parameters, merge, save_adapter
from modelcore.adapters.lora import lora_layers
from modelcore.convert.huggingface import read_huggingface, write_huggingface
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import load_model, save_model

SIZES = {"vocab_size": 41, "context_length": 16, "n_layers": 2, "d_model": 24, "n_heads": 4, "d_ff": 40}
LLAMA = GPTConfig(n_kv_heads=2, **SIZES)
LLAMA_TIED = GPTConfig(n_kv_heads=1, tie_embeddings=True, attention_bias=True, **SIZES)
GPT2 = GPTConfig(
    n_kv_heads=4, positions="learned", norm="layernorm", feedforward="gelu_tanh", attention_bias=True,
    feedforward_bias=True, norm_bias=True, tie_embeddings=True, **SIZES,
)  # fmt: skip
GPT2_UNTIED = dataclasses.replace(GPT2, tie_embeddings=False)
TOKENS = torch.randint(41, (3, 16), generator=torch.Generator().manual_seed(5))
TOLERANCE = 1e-4

CASES = {
    "llama, every layer": (LLAMA, {}),
    "llama, queries and values": (LLAMA, {"targets": ("q_proj", "v_proj"), "dropout": 0.1}),
    "llama, one layer, rank-stabilized": (LLAMA, {"targets": ("model.layers.1.self_attn.k_proj",), "rslora": True}),
    "llama, the head and the queries": (LLAMA, {"targets": ("lm_head", "q_proj")}),
    "llama, tied, one key head, biases": (LLAMA_TIED, {"alpha": 5.5}),
    "gpt2, every layer": (GPT2, {}),
    "gpt2, attention": (GPT2, {"targets": ("c_attn",)}),
    "llama, the embedding and the head": (LLAMA, {"targets": ("embed_tokens", "lm_head")}),
    "llama, DoRA": (LLAMA, {"dora": True}),
    "llama, DoRA on parts of fused layers": (LLAMA, {"targets": ("k_proj", "up_proj"), "dora": True, "rslora": True}),
    "llama, tied, DoRA, biases": (LLAMA_TIED, {"dora": True}),
    "gpt2, DoRA": (GPT2, {"dora": True}),
    "gpt2, untied, DoRA on the head": (GPT2_UNTIED, {"targets": ("lm_head", "c_fc"), "dora": True}),
}
BOTH = pytest.mark.parametrize(("config", "lora"), CASES.values(), ids=CASES)


def noisy(parameters):
    """Moves parameters away from where they start, so that nothing is zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def model_with_adapter(config, **lora):
    torch.manual_seed(0)
    model = add_lora(GPT(config), LoRAConfig(rank=3, **lora)).eval()
    noisy(lora_parameters(model))
    return model


def base_of(config):
    torch.manual_seed(0)
    return GPT(config).eval()


@BOTH
def test_peft_loads_what_is_saved_here_and_computes_the_same(config, lora, tmp_path):
    ours = model_with_adapter(config, **lora)
    save_adapter(tmp_path, ours)
    (tmp_path / "base").mkdir()
    write_huggingface(tmp_path / "base", base_of(config), None)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path).eval()
    with torch.no_grad():
        assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() <= TOLERANCE
        merged = theirs.merge_and_unload()
        assert (merged(TOKENS).logits - merge(ours)(TOKENS)).abs().max() <= TOLERANCE


@BOTH
def test_what_peft_saved_computes_the_same_here(config, lora, tmp_path):
    (tmp_path / "base").mkdir()
    write_huggingface(tmp_path / "base", base_of(config), None)
    peft_config = LoraConfig(
        r=5,
        lora_alpha=7,
        task_type="CAUSAL_LM",
        target_modules=list(lora.get("targets", ())) or "all-linear",
        use_rslora=lora.get("rslora", False),
        use_dora=lora.get("dora", False),
        fan_in_fan_out=config.positions == "learned",
    )
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft_config).eval()
    noisy(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapter(tmp_path / "adapter", read_huggingface(tmp_path / "base"))
    with torch.no_grad():
        assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() <= TOLERANCE


def test_targets_that_only_other_models_have_are_passed_over_as_peft_does(tmp_path):
    (tmp_path / "base").mkdir()
    write_huggingface(tmp_path / "base", base_of(LLAMA), None)
    peft_config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "c_attn", "query_key_value"])
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft_config).eval()
    noisy(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapter(tmp_path / "adapter", base_of(LLAMA))
    with torch.no_grad():
        assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    "choice",
    [
        {"target_modules": ["q_proj", "down_proj", "lm_head"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["layers.0.mlp.down_proj"]},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": r".*\.1\..*"},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    ],
)
def test_modules_that_peft_was_told_to_leave_out_are_left_out(choice, tmp_path):
    (tmp_path / "base").mkdir()
    write_huggingface(tmp_path / "base", base_of(LLAMA), None)
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(r=2, task_type="CAUSAL_LM", **choice)
    ).eval()
    noisy(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapter(tmp_path / "adapter", base_of(LLAMA))
    with torch.no_grad():
        assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() <= TOLERANCE


def peft_gradients(model):
    """Gradients of a PEFT model's adapter by the names in its file."""
    return {
        name.replace(".default", "").replace("vector.weight", "vector"): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def our_gradients(model):
    """Gradients of our model's adapter by the names in its file."""
    for _, layer in lora_layers(model):  # tensors() names views of the parameters' data
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.grad
    return {f"base_model.model.{name}": g for _, layer in lora_layers(model) for name, g in layer.tensors().items()}


@BOTH
def test_the_adapters_gradients_are_pefts(config, lora, tmp_path):
    """With dropout, where our parts of a fused layer share a mask, only GPT-2 has the same masks as in PEFT."""
    dropout = 0.3 if config.positions == "learned" else 0.0
    ours = model_with_adapter(config, **{"alpha": 3.0} | lora | {"dropout": dropout}).train()
    save_adapter(tmp_path, ours)
    (tmp_path / "base").mkdir()
    write_huggingface(tmp_path / "base", base_of(config), None)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).train()
    losses = []
    for logits in (lambda: ours(TOKENS), lambda: theirs(TOKENS).logits):
        torch.manual_seed(2)  # the same masks
        losses.append(F.cross_entropy(logits().flatten(0, 1), TOKENS.flatten()))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    got, wanted = our_gradients(ours), peft_gradients(theirs)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).abs().max() <= 1e-5, name
        assert gradient.any(), name


@BOTH
def test_an_adapter_comes_back_bit_for_bit(config, lora, tmp_path):
    ours = model_with_adapter(config, **lora)
    save_adapter(tmp_path, ours)
    assert torch.equal(load_adapter(tmp_path, base_of(config))(TOKENS), ours(TOKENS))


def test_target_modules_may_be_a_pattern_as_peft_writes_them(tmp_path):
    ours = model_with_adapter(LLAMA, targets=("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"))
    save_adapter(tmp_path, ours)
    change(tmp_path, target_modules=r"model\.layers\.0\..*\.(q|v)_proj")
    assert torch.equal(load_adapter(tmp_path, base_of(LLAMA))(TOKENS), ours(TOKENS))


def test_loading_draws_no_random_number(tmp_path):
    save_adapter(tmp_path, model_with_adapter(LLAMA))
    model = base_of(LLAMA)
    before = torch.get_rng_state()
    load_adapter(tmp_path, model)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_adapter_knows_the_model_it_was_trained_on(tmp_path):
    for name in ("base", "other", "adapter"):
        (tmp_path / name).mkdir()
    save_model(tmp_path / "base", base_of(LLAMA), None)
    save_model(tmp_path / "other", GPT(LLAMA), None)
    save_adapter(tmp_path / "adapter", model_with_adapter(LLAMA), base=tmp_path / "base")
    load_adapter(tmp_path / "adapter", load_model(tmp_path / "base"), base=tmp_path / "base")
    with pytest.raises(InputError, match=r"adapter was trained on another model than the one in .*other"):
        load_adapter(tmp_path / "adapter", load_model(tmp_path / "other"), base=tmp_path / "other")


def test_a_head_stored_beside_its_adapter_must_be_the_models(tmp_path):
    save_adapter(tmp_path, model_with_adapter(LLAMA, targets=("lm_head",)))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.base_layer.weight"] = torch.zeros(41, 24)  # where PEFT puts it
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="trained on a model with another head"):
        load_adapter(tmp_path, base_of(LLAMA))


@pytest.fixture
def adapter(tmp_path):
    """A saved adapter of the Llama to damage."""
    save_adapter(tmp_path, model_with_adapter(LLAMA))
    return tmp_path


def change(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rename(folder, old, new):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[new] = tensors.pop(old)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_keys_that_match_nothing_are_named(adapter):
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors | {key.replace("q_proj", "x_proj"): tensors[key].clone()}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"1 tensors that match nothing in the model: .*x_proj\.lora_A\.weight"):
        load_adapter(adapter, base_of(LLAMA))


def test_keys_that_are_missing_are_named(adapter):
    rename(adapter, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "q_proj.lora_A.weight")
    with pytest.raises(InputError, match=r"lacks 1 of the tensors needed: .*layers\.0\.self_attn\.q_proj\.lora_A"):
        load_adapter(adapter, base_of(LLAMA))


def test_an_adapter_of_a_model_of_another_width_is_refused(adapter):
    wider = GPTConfig(n_kv_heads=2, **SIZES | {"d_model": 48})
    with pytest.raises(InputError, match=r"has shape \(.*24.*\); \(.*48.*\) is needed"):
        load_adapter(adapter, GPT(wider))


def test_an_adapter_of_another_architecture_is_refused(adapter):
    with pytest.raises(InputError, match=r"tensors that match nothing in the model: base_model\.model\.model\.layers"):
        load_adapter(adapter, base_of(GPT2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_qalora": True}, "use_qalora is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]: whole layers are stored"),
        ({"target_modules": ["embed_tokens"], "use_dora": True}, "DoRA of the embedding model.embed_tokens"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({"layers_to_transform": ["one"]}, r"layers_to_transform is \['one'\]; numbers of layers are needed"),
        ({"layers_to_transform": [7], "target_modules": ["q_proj"]}, "no layer is left"),
        ({"exclude_modules": {"a": 1}}, "exclude_modules is {'a': 1}; a list of module names"),
        ({"exclude_modules": "("}, r"exclude_modules '\(' is no pattern"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"target_modules": []}, r"target_modules is \[\]"),
        ({"target_modules": "nothing"}, "'nothing' matches no layer"),
        ({"target_modules": "("}, r"target_modules '\(' is no pattern"),
        ({"r": "many"}, "rank is 'many'"),
        ({"lora_alpha": None}, "adapter_config.json"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(adapter, fields, message):
    change(adapter, **fields)
    with pytest.raises(InputError, match=message):
        load_adapter(adapter, base_of(LLAMA))


def test_a_truncated_adapter_is_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is truncated"):
        load_adapter(adapter, base_of(LLAMA))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(adapter, name):
    (adapter / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        load_adapter(adapter, base_of(LLAMA))


def test_a_pickle_is_refused_by_name(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin is a pickle, which can run code"):
        load_adapter(adapter, base_of(LLAMA))


def test_a_model_without_lora_cannot_be_saved_as_an_adapter(tmp_path):
    with pytest.raises(ValueError, match="no LoRA layers"):
        save_adapter(tmp_path, base_of(LLAMA))
