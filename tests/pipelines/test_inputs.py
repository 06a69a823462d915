"""What a run is to read is looked at before its first stage."""

import subprocess
import sys
import typing

import pytest

from modelcore.errors import InputError
from pipelines import inputs

RECIPE = """
model: llama-nano
training: {steps: 1, batch_size: 1, sequence_length: 8, learning_rate: 0.1}
"""


@pytest.fixture
def good(tmp_path):
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "own.yaml").write_text(RECIPE)
    text = str(tmp_path / "text.txt")
    return {"corpus": text, "heldout": text, "instructions": text, "preset": "llama-nano"}


@pytest.mark.parametrize("other", [{}, {"heldout": ""}, {"preset": "gpt2-small"}, {"preset": "own.yaml"}])
def test_what_is_there_may_begin(good, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs.check(good | other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"corpus": "no/text"}, "^corpus 'no/text' does not exist; give a file, a folder, or s3://bucket/prefix$"),
        ({"corpus": ""}, "^corpus is empty; give a file, a folder"),
        ({"heldout": "no/text"}, "^heldout 'no/text' does not exist; .* or leave it empty$"),
        ({"instructions": "no.jsonl"}, "^instructions 'no.jsonl' does not exist; give a .jsonl file"),
        ({"instructions": ""}, "^instructions is empty; give a .jsonl file"),
        ({"corpus": "gs://bucket/texts"}, "gs:// is not supported; give a path or s3://bucket/prefix"),
        (
            {"preset": "lama-nano"},
            "^unknown recipe 'lama-nano'; known: gpt2-nano, .*llama-nano.* path of a .yaml file$",
        ),
        ({"optimizer": "adam"}, "^optimizer is 'adam'; give one of recipe, adamw, muon$"),
        ({"preset": ""}, "^unknown recipe ''"),
        ({"preset": "none.yaml"}, "^no recipe file at none.yaml$"),
        ({"preset": "broken.yaml"}, "^recipe broken, training: unknown key 'stepps'"),
    ],
)
def test_what_is_missing_is_one_line_that_names_it(good, other, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text(RECIPE.replace("steps", "stepps"))
    with pytest.raises(InputError, match=message):
        inputs.check(good | other)


def test_the_choices_are_those_of_the_stages():
    from modelcore.stages.finetune_lora import finetune_lora
    from modelcore.stages.pretrain import pretrain
    from modelcore.stages.train_tokenizer import train_tokenizer

    takes = {
        name: typing.get_args(typing.get_type_hints(stage)[argument])
        for name, stage, argument in (
            ("tokenizer_algorithm", train_tokenizer, "algorithm"),
            ("optimizer", pretrain, "optimizer"),
            ("parallel", pretrain, "parallel"),
            ("lora_quantize", finetune_lora, "quantize"),
        )
    }
    assert takes == inputs.CHOICES


def test_a_sweeps_trials_change_what_there_is_each_something_else(good):
    inputs.check(good | {"trials": ["learning_rate=0.1", "learning_rate=0.1 n_layers=2", ""]})
    with pytest.raises(InputError, match=r"^trial 'n_layer=2': there is no 'n_layer' to change; known: "):
        inputs.check(good | {"trials": ["learning_rate=0.1", "n_layer=2"]})
    with pytest.raises(InputError, match=r"^trial 'n_layers=2  d_ff=8' is given twice"):
        inputs.check(good | {"trials": ["n_layers=2 d_ff=8", "n_layers=2  d_ff=8"]})
    with pytest.raises(InputError, match=r"^trials is empty"):
        inputs.check(good | {"trials": []})


def test_what_is_on_s3_is_looked_for_there(good, s3_bucket, s3_server):
    s3_server.client().put_object(Bucket=s3_bucket, Key="texts/a.txt", Body=b"x")
    inputs.check(good | {"corpus": f"s3://{s3_bucket}/texts", "instructions": f"s3://{s3_bucket}/texts/a.txt"})
    for parameter in ("corpus", "heldout", "instructions"):
        with pytest.raises(InputError, match=rf"^{parameter} 's3://{s3_bucket}/test' does not exist; give a"):
            inputs.check(good | {parameter: f"s3://{s3_bucket}/test"})
    with pytest.raises(InputError, match=r"^s3://no-such-bucket-here/texts: there is no such bucket$"):
        inputs.check(good | {"corpus": "s3://no-such-bucket-here/texts"})


def test_a_recipe_of_the_librarys_is_found_without_torch(good):
    code = f"import sys; from pipelines import inputs; inputs.check({good!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_samples_conversations_are_named_where_ones_own_text_meets_them():
    defaults = {"corpus": "sample", "instructions": "sample.jsonl"}
    assert inputs.sample_conversations(defaults, defaults) is None
    assert inputs.sample_conversations(defaults | {"corpus": "mine", "instructions": "mine"}, defaults) is None
    line = inputs.sample_conversations(defaults | {"corpus": "mine"}, defaults)
    assert "sample's dialogue (sample.jsonl)" in line
    assert "INSTRUCTIONS=pairs.jsonl" in line
