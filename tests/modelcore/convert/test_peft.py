"""An adapter that peft saved becomes ours, checked by peft on both sides; one that cannot is refused by name."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modelcore.adapters import LoRAConfig, add_lora, load_adapter, lora_parameters, save_adapter
from modelcore.convert import ConversionError, convert, detect_format
from modelcore.convert import peft as our_peft
from modelcore.errors import InputError
from modelcore.gptx import GPT
from modelcore.models import load_model, save_model

from .conftest import GPT2, LLAMA

TOKENS = torch.randint(320, (2, 20), generator=torch.Generator().manual_seed(1))
ADAPTERS = {
    "llama, a pattern": (LLAMA, {"target_modules": r".*\.(q_proj|down_proj)"}),
    "llama, everything": (LLAMA, {"target_modules": "all-linear", "use_rslora": True}),
    "llama, DoRA": (LLAMA, {"target_modules": ["k_proj", "up_proj"], "use_dora": True}),
    "llama, the head": (LLAMA, {"target_modules": ["lm_head", "v_proj"]}),
    "gpt2, turned layers": (GPT2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
}


def drawn(parameters):
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS)
def folders(request, tmp_path, randomized):
    """A base, ``native`` and ``huggingface``, and an ``adapter`` that peft has saved; and peft's logits with it."""
    config, options = request.param
    (tmp_path / "native").mkdir()
    save_model(tmp_path / "native", randomized(config), None)
    convert(tmp_path / "native", tmp_path / "huggingface", "huggingface")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "huggingface")
    theirs = get_peft_model(theirs, LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **options))
    drawn(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path, theirs.eval()(TOKENS).logits


@pytest.mark.parametrize("base", ["native", "huggingface"])
def test_an_adapter_of_peft_becomes_ours_and_both_programs_compute_the_same(folders, base):
    path, expected = folders
    done = convert(path / "adapter", path / "ours", "peft", base=path / base)
    assert (done.source_format, done.verified_by) == ("peft", "peft")
    assert done.max_logit_difference <= 1e-4
    native = path / "native"
    with torch.no_grad():
        ours = load_adapter(path / "ours", load_model(native), native)(TOKENS)
        theirs = AutoModelForCausalLM.from_pretrained(path / "huggingface")
        theirs = PeftModel.from_pretrained(theirs, path / "ours").eval()(TOKENS).logits
    assert (ours - expected).abs().max() <= 1e-4
    assert (theirs - expected).abs().max() <= 1e-4


def test_it_says_which_modules_it_adapts_and_whose_adapter_it_is(folders, randomized):
    path, _ = folders
    convert(path / "adapter", path / "ours", "peft", base=path / "native")
    fields = json.loads((path / "ours" / "adapter_config.json").read_text())
    assert isinstance(fields["target_modules"], list)
    assert not any("base_layer" in name for name in load_file(path / "ours" / "adapter_model.safetensors"))
    other = load_model(path / "native")
    other.norm.weight.data.mul_(2)
    (path / "other").mkdir()
    save_model(path / "other", other, None)
    with pytest.raises(InputError, match=r"ours was trained on another model than the one in .*other"):
        convert(path / "ours", path / "out", "peft", base=path / "other")


def test_an_adapter_written_anew_twice_stays_the_same_bytes(folders):
    path, _ = folders
    convert(path / "adapter", path / "once", "peft", base=path / "native")
    convert(path / "once", path / "twice", "peft", base=path / "native")
    for file in (path / "once").iterdir():
        assert file.read_bytes() == (path / "twice" / file.name).read_bytes()


@pytest.fixture
def ours(tmp_path, randomized):
    """A ``native`` base and its ``adapter``, both saved here."""
    for name in ("native", "adapter"):
        (tmp_path / name).mkdir()
    model = randomized(LLAMA)
    save_model(tmp_path / "native", model, None)
    add_lora(model, LoRAConfig(rank=2))
    drawn(lora_parameters(model))
    save_adapter(tmp_path / "adapter", model, tmp_path / "native")
    return tmp_path


def test_an_adapter_of_ours_is_checked_by_peft(ours):
    assert convert(ours / "adapter", ours / "out", "peft", base=ours / "native").verified_by == "peft"
    assert detect_format(ours / "out") == "peft"


def test_without_peft_our_own_reader_does_the_check(ours, monkeypatch):
    monkeypatch.setattr("modelcore.convert.verification.find_spec", lambda name: None)
    assert convert(ours / "adapter", ours / "out", "peft", base=ours / "native").verified_by == "modelcore"


def test_an_adapter_that_would_compute_something_else_is_an_error_and_is_not_kept(ours, monkeypatch):
    def broken(folder, model, base):
        for parameter in lora_parameters(model):
            parameter.data.mul_(1.01)
        save_adapter(folder, model, base)
        for parameter in lora_parameters(model):
            parameter.data.div_(1.01)

    monkeypatch.setattr(our_peft, "save_adapter", broken)
    with pytest.raises(ConversionError, match=r"differ from its source's by"):
        convert(ours / "adapter", ours / "out", "peft", base=ours / "native")
    assert not (ours / "out").exists()


def test_the_base_of_another_shape_is_refused(ours, randomized):
    shutil.rmtree(ours / "native")
    (ours / "native").mkdir()
    save_model(ours / "native", GPT(GPT2), None)
    (ours / "adapter" / "base_model.json").unlink()
    with pytest.raises(InputError, match="tensors that match nothing in the model: base_model"):
        convert(ours / "adapter", ours / "out", "peft", base=ours / "native")


def test_an_adapter_as_the_base_is_refused(ours):
    with pytest.raises(InputError, match="is an adapter; name the model it was trained on"):
        convert(ours / "adapter", ours / "out", "peft", base=ours / "adapter")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is truncated or no safetensors file"),
        (lambda path: torch.save({}, path), "is no safetensors file but a pickle"),
        (lambda path: torch.save({}, path.with_suffix(".bin")) or path.unlink(), r"adapter_model\.bin is a pickle"),
        (lambda path: save_file({"x": torch.zeros(2)}, path), r"lacks .* of the tensors needed"),
        (lambda path: path.with_name("adapter_config.json").write_text('{"peft'), "is no JSON"),
    ],
    ids=["truncated", "pickle under a safe name", "pickle", "other tensors", "broken configuration"],
)
def test_a_damaged_adapter_is_refused_by_name(ours, damage, message):
    damage(ours / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=message):
        convert(ours / "adapter", ours / "out", "peft", base=ours / "native")
