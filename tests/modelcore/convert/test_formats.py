"""What a model is, is found by looking at it; what is none is refused by name."""

import json

import pytest
import torch

from modelcore.convert import detect_format, read_model
from modelcore.errors import InputError


def folder(path, **files):
    path.mkdir()
    for name, content in files.items():
        (path / f"{name}.json").write_text(content)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: folder(path, config='{"format": "modelcore"}'), "native"),
        (lambda path: folder(path, config='{"model_type": "gpt2"}'), "huggingface"),
        (lambda path: folder(path, adapter_config="{}"), "peft"),
        (lambda path: folder(path, adapter_config="{}", config='{"model_type": "gpt2"}'), "peft"),
        (lambda path: path.write_bytes(b"GGUF\x03\x00"), "gguf"),
    ],
    ids=["native", "huggingface", "adapter", "adapter beside a config", "gguf"],
)
def test_the_format_is_found_by_looking(tmp_path, make, kind):
    make(tmp_path / "source")
    assert detect_format(tmp_path / "source") == kind


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"text"), "is a file; the folder of a model"),
        (lambda path: path.write_bytes(b"GGUF"), "is GGUF, which is written here but not read"),
        (lambda path: path.mkdir(), "is no model folder: it has no config.json"),
        (lambda path: folder(path, config="{}"), "describes neither a native model nor"),
        (lambda path: folder(path, config="[]"), "holds a JSON list"),
        (lambda path: folder(path, config='{"model_type": "gp'), "is no JSON"),
        (lambda path: folder(path, adapter_config="{}"), "is an adapter; name the model it was trained on"),
    ],
)
def test_what_cannot_be_read_as_a_model_is_refused_by_name(tmp_path, make, message):
    make(tmp_path / "source")
    with pytest.raises(InputError, match=rf"source.*{message}"):
        read_model(tmp_path / "source")


@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin", "model.ckpt"])
def test_a_pickle_is_refused_by_name(tmp_path, name):
    torch.save({}, tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is a pickle, which can run code"):
        read_model(tmp_path / name)


class RunsCode:
    """What unpickles to the writing of a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "bare pickle"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", r"pytorch_model\.bin is a pickle, which can run code when it is read"),
        ("model.safetensors", r"model\.safetensors is no safetensors file but a pickle, which can run code"),
    ],
)
def test_a_pickle_that_wants_to_run_code_is_never_opened(tmp_path, name, message, legacy):
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "intermediate_size": 8} | sizes))
    torch.save({"w": RunsCode(str(tmp_path / "owned"))}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=message):
        read_model(tmp_path)
    assert not (tmp_path / "owned").exists()
