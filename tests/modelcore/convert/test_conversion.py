"""A conversion checks its own result, and never takes away what it cannot replace."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import modelcore.convert.conversion as conversion
from modelcore.adapters import LoRAConfig, add_lora, load_adapter, lora_parameters, save_adapter
from modelcore.cli import main
from modelcore.convert import ConversionError, convert, detect_format
from modelcore.errors import InputError
from modelcore.gptx import GPT, GPTConfig
from modelcore.models import load_model, save_model

CONFIG = GPTConfig(
    vocab_size=31, context_length=16, n_layers=1, d_model=16, n_heads=4, n_kv_heads=2, d_ff=24, tie_embeddings=True
)
TOKENS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def models(tmp_path):
    """One model as ``native`` and ``huggingface``, and its ``adapter``."""
    for name in ("native", "adapter"):
        (tmp_path / name).mkdir()
    torch.manual_seed(0)
    model = GPT(CONFIG)
    save_model(tmp_path / "native", model, None)
    convert(tmp_path / "native", tmp_path / "huggingface", "huggingface")
    add_lora(model, LoRAConfig(rank=2))
    for parameter in lora_parameters(model):
        parameter.data.normal_(std=0.2)
    save_adapter(tmp_path / "adapter", model, base=tmp_path / "native")
    return tmp_path


@pytest.mark.parametrize("source", ["native", "huggingface"])
@pytest.mark.parametrize("to", ["native", "huggingface"])
def test_an_adapter_is_merged_on_the_way_between_any_two_formats(models, source, to):
    convert(models / source, models / "merged", to, adapter=models / "adapter")
    convert(models / "merged", models / "as native", "native")
    tuned = load_adapter(models / "adapter", load_model(models / "native"))
    assert (load_model(models / "as native")(TOKENS) - tuned(TOKENS)).abs().max() <= 1e-4


def test_an_alibi_model_cannot_become_a_hugging_face_one(tmp_path):
    (tmp_path / "alibi").mkdir()
    fields = CONFIG.to_dict() | {"positions": "alibi"}
    save_model(tmp_path / "alibi", GPT(GPTConfig.from_dict(fields)), None)
    with pytest.raises(InputError, match="a model with alibi positions, rmsnorm and swiglu has no Hugging Face"):
        convert(tmp_path / "alibi", tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()


def test_a_result_that_computes_something_else_is_an_error_and_is_not_kept(models, monkeypatch):
    def broken(folder, model, tokenizer, *rest):
        wrong = load_model(models / "native")
        wrong.norm.weight.data.mul_(1.01)
        write(folder, wrong, tokenizer)

    write = conversion.write_huggingface
    monkeypatch.setattr(conversion, "write_huggingface", broken)
    with pytest.raises(ConversionError, match=r"differ from its source's by 0\.0.*; allowed: 0\.0001"):
        convert(models / "native", models / "out", "huggingface")
    assert not (models / "out").exists()


def test_without_transformers_our_own_reader_does_the_check(models, monkeypatch):
    monkeypatch.setattr("modelcore.convert.verification.find_spec", lambda name: None)
    assert convert(models / "native", models / "out", "huggingface").verified_by == "modelcore"


def test_a_model_in_the_way_is_replaced(models):
    convert(models / "native", models / "huggingface", "huggingface")
    convert(models / "huggingface", models / "native", "native")
    assert detect_format(models / "native") == "native"


@pytest.mark.parametrize("name", ["notes", "notes/text.txt"])
def test_anything_else_in_the_way_is_left_as_it_is(models, name):
    (models / "notes").mkdir()
    (models / "notes" / "text.txt").write_text("dear diary")
    with pytest.raises(InputError, match="exists and is no model folder; it is left as it is"):
        convert(models / "native", models / name, "huggingface")
    assert (models / "notes" / "text.txt").read_text() == "dear diary"


@pytest.mark.parametrize("to", ["native", "huggingface"])
def test_a_file_of_somebody_beside_the_model_in_the_way_is_not_lost(models, to):
    (models / "huggingface" / "notes.txt").write_text("dear diary")
    with pytest.raises(InputError, match=r"huggingface holds notes\.txt beside its model folder; it is left as it is"):
        convert(models / "native", models / "huggingface", to)
    assert detect_format(models / "huggingface") == "huggingface"


@pytest.mark.parametrize(
    ("source", "dest", "to", "options", "message"),
    [
        ("native", "adapter/../native", "huggingface", {}, "native is what is converted"),
        ("native", "adapter", "huggingface", {"adapter": "adapter"}, "adapter is what is converted"),
        ("adapter", "native", "peft", {"base": "native"}, "native is what is converted"),
        ("native", ".", "huggingface", {}, "holds what is converted"),
        ("native", "adapter", "huggingface", {}, "adapter exists and is no model folder; it is left as it is"),
        ("adapter", "huggingface", "peft", {"base": "native"}, "huggingface exists and is no adapter; it is left as"),
    ],
)
def test_what_is_converted_and_models_of_another_kind_are_not_replaced(models, source, dest, to, options, message):
    before = {path: path.read_bytes() for path in models.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        convert(models / source, models / dest, to, **{name: models / path for name, path in options.items()})
    assert {path: path.read_bytes() for path in models.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("dest", ["native", "notes.gguf"])
def test_a_gguf_file_replaces_nothing_but_a_gguf_file(models, dest):
    (models / "notes.gguf").write_text("dear diary")
    message = "does not end in .gguf" if dest == "native" else "exists and is no GGUF file; it is left as it is"
    with pytest.raises(InputError, match=message):
        convert(models / "huggingface", models / dest, "gguf")
    assert detect_format(models / "native") == "native"
    assert (models / "notes.gguf").read_text() == "dear diary"
    for _ in range(2):
        convert(models / "huggingface", models / "model.gguf", "gguf")
    with pytest.raises(InputError, match="exists and is no model folder"):
        convert(models / "huggingface", models / "model.gguf", "native")


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("onnx", {}, "cannot convert to 'onnx'; formats: native, huggingface, peft, gguf"),
        ("native", {"dtype": "f16"}, "a dtype is chosen for GGUF alone; native keeps the weights' own"),
        ("gguf", {"base": "native"}, "a base is for peft alone, not for gguf"),
        ("peft", {}, "name the model that the adapter .*native was trained on as the base"),
        ("peft", {"base": "native"}, "is a native model; the source of a peft folder must be an adapter"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(models, to, options, message):
    if "base" in options:
        options = {"base": models / options["base"]}
    with pytest.raises(InputError, match=message):
        convert(models / "native", models / ("out.gguf" if to == "gguf" else "out"), to, **options)


def test_what_tells_how_to_generate_travels_with_the_model(models):
    fields = {"do_sample": True, "temperature": 0.7, "eos_token_id": [2, 5], "transformers_version": "4.0.0"}
    (models / "huggingface" / "generation_config.json").write_text(json.dumps(fields))
    convert(models / "huggingface", models / "native again", "native")
    convert(models / "native again", models / "out", "huggingface")
    kept = {name: value for name, value in fields.items() if name != "transformers_version"}
    assert json.loads((models / "out" / "generation_config.json").read_text()) == kept
    config = AutoModelForCausalLM.from_pretrained(models / "out").generation_config
    assert (config.do_sample, config.temperature, config.eos_token_id) == (True, 0.7, [2, 5])


def test_on_the_command_line_the_source_is_looked_at_and_the_figures_are_printed(models, capsys):
    assert main(["convert", str(models / "huggingface"), str(models / "m.gguf"), "--to", "gguf", "--dtype", "f16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"out={models / 'm.gguf'}"
    assert {"source_format=huggingface", "verified_by=gguf", "files=m.gguf"} <= set(lines)
    base = ["--base", str(models / "native")]
    assert main(["convert", str(models / "adapter"), str(models / "adapter again"), "--to", "peft", *base]) == 0
    assert "source_format=peft" in capsys.readouterr().out


def test_on_the_command_line_a_conversion_that_fails_is_one_line_and_status_1(models, capsys, monkeypatch):
    arguments = ["convert", str(models / "native"), str(models / "out"), "--to", "huggingface"]
    monkeypatch.setattr("modelcore.convert.verification.TOLERANCE", -1.0)
    assert main(arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("modelcore: error: logits of ")
    assert "differ from its source's by 0; allowed: -1.0" in last
    assert not (models / "out").exists()
