"""The command line: what one types, what one gets, how it fails."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modelcore.cli import main
from modelcore.commands import build_parser
from modelcore.gptx import GPT, GPTConfig
from modelcore.inference import SamplingConfig, TextGenerator
from modelcore.models import save_model
from modelcore.tokenizers import Tokenizer
from modelcore.tokenizers.chat import Message, encode_conversation, format_prompt, reply_text

TOKENIZERS = Path(__file__).parents[1] / "data" / "tokenizers"

COMMANDS = (
    "validate-data",
    "train-tokenizer",
    "tokenize",
    "pretrain",
    "finetune",
    "convert",
    "evaluate",
    "register",
    "generate",
    "doctor",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"modelcore {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "train-tokenizer CORPUS --out DIR --vocab-size 500",
        "pretrain --tokens DIR --out DIR --preset gpt2-small",
        "generate --model DIR --prompt TEXT --max-tokens 5 --seed 1",
        "convert SOURCE DEST --to huggingface",
    ],
)
def test_the_forms_people_type_are_understood(line):
    build_parser().parse_args(line.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("generate --model /no/such --prompt x", "/no/such"),
        ("convert /no/such /tmp/x --to native", "/no/such"),
        ("pretrain --tokens /no/such --out {tmp}/x", "/no/such"),
        ("train-tokenizer /no/such --out {tmp}/x --vocab-size 500", "/no/such"),
    ],
)
def test_a_missing_path_is_one_line_that_names_it(line, message, tmp_path, capsys):
    assert main(line.format(tmp=tmp_path).split()) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("modelcore: error: ")
    assert message in error


def test_an_unknown_command_exits_with_2():
    child = subprocess.run([sys.executable, "-m", "modelcore.cli", "no-such"], capture_output=True, check=False)
    assert child.returncode == 2


def test_help_tells_defaults_but_not_that_there_is_none(capsys):
    texts = []
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        texts.append(" ".join(capsys.readouterr().out.split()))
    assert not [text for text in texts if "default: None" in text]
    assert "(default: " in "".join(texts)


def test_help_needs_no_heavy_library():
    code = "import sys; from modelcore.commands import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    """A small model of a tokenizer that others made."""
    tokenizer = Tokenizer.load(TOKENIZERS / request.param)
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.vocab_size, 64, n_layers=1, d_model=8, n_heads=1, n_kv_heads=1, d_ff=8)
    save_model(folder, GPT(config), None)
    tokenizer.save(folder)
    return folder


def generate(capsys, *options):
    assert main(["generate", "--max-tokens", "8", "--temperature", "0", *map(str, options)]) == 0
    return capsys.readouterr().out


def test_generate_shows_the_prompt_and_what_follows_with_its_spaces(model, capsys):
    generator = TextGenerator.load(model)
    shown = generate(capsys, "--model", model, "--prompt", "She was")
    assert shown == "She was" + generator.complete("She was", SamplingConfig(temperature=0.0), 8).text + "\n"


def test_a_chat_asks_in_the_form_that_tuning_taught_and_shows_the_reply_alone(model, capsys):
    generator = TextGenerator.load(model)
    asked = format_prompt("Are you well?", "It rained.")
    said = encode_conversation(generator.tokenizer, [Message("system", "It rained."), Message("user", "Are you well?")])
    assert generator.tokenizer.encode(asked, bos=generator.tokenizer.adds_bos) == said.ids
    shown = generate(capsys, "--model", model, "--chat", "--system", "It rained.", "--prompt", "Are you well?")
    assert shown == reply_text(generator.complete(asked, SamplingConfig(temperature=0.0), 8).text) + "\n"


def test_a_system_message_outside_a_chat_is_refused(capsys):
    assert main(["generate", "--model", "x", "--prompt", "y", "--system", "z"]) == 1
    assert "--system is part of a chat; give --chat too" in capsys.readouterr().err


def test_doctor_tells_versions_cores_memory_and_what_fits(capsys):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    for word in ("torch", "sentencepiece", "peft", "cores", "memory", "gpt2-small", "124.4 M", "llama-nano"):
        assert word in report
