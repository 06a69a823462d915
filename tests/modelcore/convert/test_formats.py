"""A conversion finds the source's format, checks its own result, and never takes away what it cannot replace."""

import pytest
import torch

import modelcore.convert.formats as formats
from modelcore.adapters import LoRAConfig, add_lora, load_adapter, lora_parameters, save_adapter
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


def test_the_format_is_found_by_looking(models):
    found = [detect_format(models / name) for name in ("native", "huggingface", "adapter")]
    assert found == ["native", "huggingface", "peft"]


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
    def broken(folder, model, tokenizer):
        wrong = load_model(models / "native")
        wrong.norm.weight.data.mul_(1.01)
        write(folder, wrong, tokenizer)

    write = formats.write_huggingface
    monkeypatch.setattr(formats, "write_huggingface", broken)
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


def test_the_source_is_not_replaced_by_its_own_conversion(models):
    with pytest.raises(InputError, match="is the source itself"):
        convert(models / "native", models / "adapter" / ".." / "native", "huggingface")


def test_an_adapter_alone_is_no_model(models):
    with pytest.raises(InputError, match="is an adapter; name the model it was trained on"):
        convert(models / "adapter", models / "out", "huggingface")


def test_an_unknown_format_is_refused_with_the_known_ones(models):
    with pytest.raises(InputError, match="cannot convert to 'onnx'; formats: native, huggingface"):
        convert(models / "native", models / "out", "onnx")


def test_a_pickle_is_refused_by_name(models):
    torch.save({}, models / "weights.pt")
    with pytest.raises(InputError, match=r"weights\.pt is a pickle, which can run code"):
        convert(models / "weights.pt", models / "out", "native")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"GGUF"), "is a file; the folder of a model"),
        (lambda path: path.mkdir(), "is no model folder: it has no config.json"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "describes neither a native model nor"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{")), "is no JSON"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path, make, message):
    make(tmp_path / "source")
    with pytest.raises(InputError, match=rf"source.*{message}"):
        convert(tmp_path / "source", tmp_path / "out", "native")
