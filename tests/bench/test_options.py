"""What a benchmark is asked for goes through the command line unchanged."""

import argparse

import pytest

from bench.__main__ import run
from bench.benchmark import Options, add_options, read_options
from bench.machine import Machine
from modelcore.errors import InputError


def read(arguments):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_options(parser.parse_args(arguments))


def test_the_command_line_of_options_gives_them_again(tmp_path):
    (tmp_path / "model.py").touch()
    settings = {"micro_batch_size": 2, "compile": False, "precision": "bf16", "betas": [0.9, 0.99], "optimizer": "1"}
    for options in (
        Options(),
        Options(small=True, peers={"nanogpt": tmp_path}, settings=settings, folder=tmp_path),
    ):
        assert read(options.arguments()) == options


def test_a_setting_is_what_json_has_or_else_a_text():
    assert read(["--set", "micro_batch_size=2", "--set", "precision=bf16"]).settings == {
        "micro_batch_size": 2,
        "precision": "bf16",
    }


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(InputError, match="setting 'compile' has no value; give NAME=VALUE"):
        read(["--set", "compile"])


def test_an_unknown_setting_is_refused_with_the_names_that_there_are():
    with pytest.raises(InputError, match=r"^setting 'nonsense' is not known; there are: .*batch_size, betas, .*steps"):
        read(["--set", "nonsense=1"])


def test_what_is_more_than_rows_goes_beside_them(tmp_path, monkeypatch):
    (tmp_path / "made_options").mkdir()
    (tmp_path / "made_options" / "__init__.py").write_text("BENCHMARKS = ('one',)\nPEERS = TRAINING = ()\n")
    (tmp_path / "made_options" / "one.py").write_text(
        "from bench.benchmark import main\nfrom bench.row import Row\ndef rows(options):\n"
        "    (options.folder / 'curve').touch()\n    yield Row('one', 'throughput', 1.0, 'tok/s')\nmain(rows)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:.")
    (tmp_path / "out").mkdir()
    assert run("made_options", [], Options(), Machine("cpu-test", {}), tmp_path / "out" / "rows.jsonl") == 0
    assert (tmp_path / "out" / "curve").exists()
