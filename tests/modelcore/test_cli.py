"""The command line: what one types, what one gets, how it fails."""

import subprocess
import sys

import pytest

from modelcore.cli import build_parser, main

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


def test_help_needs_no_heavy_library():
    code = "import sys; from modelcore.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_doctor_tells_versions_cores_memory_and_what_fits(capsys):
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    for word in ("torch", "sentencepiece", "cores", "memory", "gpt2-small", "124.4 M", "llama-nano"):
        assert word in report
