"""Adapters of a tied embedding or head: what PEFT computes is computed here, and merging never breaks the tie unseen.

PEFT 0.21 adapts either of the two, or both, beside the weight they share. Its own merge then writes a correction into
the shared weight, for both; ours gives each its own.
"""

import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from modelcore.adapters import LoRAConfig, add_lora, load_adapter, lora_parameters, merge, save_adapter
from modelcore.convert.huggingface import read_huggingface, write_huggingface
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig, pad_vocabulary

SIZES = {"vocab_size": 41, "context_length": 16, "n_layers": 1, "d_model": 24, "n_heads": 4, "d_ff": 40}
CONFIGS = {
    "llama": GPTConfig(n_kv_heads=2, tie_embeddings=True, **SIZES),
    "gpt2": GPTConfig(
        n_kv_heads=4, positions="learned", norm="layernorm", feedforward="gelu_tanh", attention_bias=True,
        feedforward_bias=True, norm_bias=True, tie_embeddings=True, **SIZES,
    ),
}  # fmt: skip
EMBEDDING = {"llama": "embed_tokens", "gpt2": "wte"}
TOKENS = torch.randint(41, (3, 16), generator=torch.Generator().manual_seed(5))
TOLERANCE = 1e-4

ARCHITECTURES = pytest.mark.parametrize("name", CONFIGS)
CHOICES = pytest.mark.parametrize("choice", ["head", "embedding", "both", "head and a block"])


def targets(name, choice):
    return {
        "head": ("lm_head",),
        "embedding": (EMBEDDING[name],),
        "both": (EMBEDDING[name], "lm_head"),
        "head and a block": ("lm_head", "down_proj" if name == "llama" else "mlp.c_proj"),
    }[choice]


def noisy(parameters):
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def base_of(name):
    torch.manual_seed(0)
    return GPT(CONFIGS[name]).eval()


def adapted(name, names):
    model = add_lora(base_of(name), LoRAConfig(rank=3, alpha=3, targets=names))
    noisy(lora_parameters(model))
    return model


@pytest.fixture
def base_folder(tmp_path):
    """Writes the base of an architecture for transformers and gives its folder."""

    def write(name):
        (tmp_path / "base").mkdir()
        write_huggingface(tmp_path / "base", base_of(name), None)
        return tmp_path / "base"

    return write


@CHOICES
@ARCHITECTURES
def test_peft_loads_what_is_saved_here_and_computes_the_same(name, choice, base_folder, tmp_path):
    ours = adapted(name, targets(name, choice))
    save_adapter(tmp_path, ours)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder(name)), tmp_path).eval()
    with torch.no_grad():
        assert (ours(TOKENS) - base_of(name)(TOKENS)).abs().max() > 0.1
        assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() <= TOLERANCE


@CHOICES
@ARCHITECTURES
def test_what_peft_saved_computes_the_same_here(name, choice, base_folder, tmp_path):
    base = base_folder(name)
    config = LoraConfig(r=3, task_type="CAUSAL_LM", target_modules=list(targets(name, choice)))
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    noisy(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapter(tmp_path / "adapter", read_huggingface(base))
    with torch.no_grad():
        assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("choice", ["head", "embedding"])
@ARCHITECTURES
def test_weight_tying_that_peft_ensured_is_read(name, choice, base_folder, tmp_path):
    """Compared with the model that PEFT saved: of a GPT-2, PEFT 0.21 reads its own file without the head's part."""
    base = base_folder(name)
    config = LoraConfig(
        r=3, task_type="CAUSAL_LM", target_modules=list(targets(name, choice)), ensure_weight_tying=True
    )
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    noisy(p for n, p in theirs.named_parameters() if p.requires_grad and "embedding" in n)  # the head's are the same
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapter(tmp_path / "adapter", read_huggingface(base))
    with torch.no_grad():
        assert (theirs(TOKENS).logits - ours(TOKENS)).abs().max() <= TOLERANCE


@CHOICES
@ARCHITECTURES
def test_merging_parts_what_the_adapter_parted_and_says_so(name, choice, tmp_path, caplog):
    model = adapted(name, targets(name, choice))
    with torch.no_grad():
        unmerged = model(TOKENS)
        with caplog.at_level(logging.WARNING):
            merge(model)
        assert (model(TOKENS) - unmerged).abs().max() <= TOLERANCE
    assert not model.config.tie_embeddings
    assert model.head.weight is not model.embedding.weight
    assert "two weights, and the model has 984 parameters more" in caplog.text
    write_huggingface(tmp_path, model, None)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert (theirs(TOKENS).logits - unmerged).abs().max() <= TOLERANCE


@ARCHITECTURES
def test_merging_keeps_the_tie_where_both_are_corrected_alike(name, base_folder, tmp_path):
    base = base_folder(name)
    config = LoraConfig(r=3, task_type="CAUSAL_LM", target_modules=["lm_head"], ensure_weight_tying=True)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    noisy(p for n, p in theirs.named_parameters() if p.requires_grad and "embedding" in n)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapter(tmp_path / "adapter", read_huggingface(base))
    with torch.no_grad():
        unmerged = ours(TOKENS)
        assert (merge(ours)(TOKENS) - unmerged).abs().max() <= TOLERANCE
    assert ours.config.tie_embeddings
    assert ours.head.weight is ours.embedding.weight


@ARCHITECTURES
def test_merging_keeps_the_tie_where_neither_is_adapted(name):
    model = merge(adapted(name, ()))
    assert model.config.tie_embeddings
    assert model.head.weight is model.embedding.weight


@ARCHITECTURES
@CHOICES
def test_merging_leaves_the_padding_of_a_vocabulary_alone(name, choice):
    model = add_lora(pad_vocabulary(base_of(name), 64), LoRAConfig(rank=3, targets=targets(name, choice))).eval()
    noisy(lora_parameters(model))
    with torch.no_grad():
        before = model(TOKENS)
        merged = merge(model)
        assert (merged(TOKENS) - before).abs().max() <= TOLERANCE
    assert not merged.embedding.weight[41:].any()
    assert not merged.head.weight[41:].any()


@ARCHITECTURES
def test_merging_leaves_the_bases_shared_weight_alone(name):
    model = adapted(name, targets(name, "both"))
    shared, before = model.embedding.weight, model.embedding.weight.clone()
    merge(model)
    assert torch.equal(shared, before)


@ARCHITECTURES
@pytest.mark.parametrize("module", ["lm_head", "embedding"])
def test_whole_layers_beside_the_adapter_are_refused_by_name(name, module, base_folder, tmp_path):
    module = EMBEDDING[name] if module == "embedding" else module
    block = "down_proj" if name == "llama" else "c_fc"
    config = LoraConfig(r=3, task_type="CAUSAL_LM", target_modules=[block], modules_to_save=[module])
    base = base_folder(name)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=rf"modules_to_save is \['{module}'\]: whole layers are stored"):
        load_adapter(tmp_path / "adapter", read_huggingface(base))


@ARCHITECTURES
def test_an_adapter_of_another_models_embedding_is_refused(name, base_folder, tmp_path):
    base = base_folder(name)
    config = LoraConfig(r=3, task_type="CAUSAL_LM", target_modules=[EMBEDDING[name], "lm_head"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="trained on a model with another embedding"):
        load_adapter(tmp_path / "adapter", GPT(CONFIGS[name]))


def test_by_default_a_tied_head_is_not_adapted():
    names = {name for name, _ in add_lora(base_of("llama"), LoRAConfig(rank=3)).named_modules()}
    assert not names & {"head.base", "embedding.base"}
