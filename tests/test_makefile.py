"""What one gives on make's line reaches the program as it is, whatever characters it has."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NASTY = (
    """it's "my" texts; touch pwned && $(touch pwned) `touch pwned` $HOME ${HOME} $$ $(shell touch pwned) \\ * #1 %"""
)


@pytest.fixture
def make(tmp_path):
    """Runs make in a copy of the project where every program only notes how it was called; returns those lines."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder.parent / "installed").touch()
    for name in ("python", "kfp", "mlflow"):
        note = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
        (folder / name).write_text(note)
        (folder / name).chmod(0o755)

    def make(*words, **environment):
        done = subprocess.run(
            ["make", "--no-print-directory", *words],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not list(tmp_path.rglob("pwned"))
        return json.loads(done.stdout.splitlines()[-1])

    return make


def test_without_variables_the_defaults_hold(make):
    assert make("pipeline") == ["-m", "pipelines.local"]


OPTIONS = {
    "NAME": "--name",
    "RUNS": "--runs",
    "HELDOUT": "--heldout",
    "INSTRUCTIONS": "--instructions",
    "VOCAB_SIZE": "--vocab-size",
    "PRESET": "--preset",
    "STEPS": "--steps",
    "SEED": "--seed",
    "LORA_RANK": "--lora-rank",
    "LORA_STEPS": "--lora-steps",
    "TASK_ITEMS": "--task-items",
    "MODEL_NAME": "--model-name",
}


@pytest.mark.parametrize(("variable", "option"), OPTIONS.items())
def test_each_variable_is_an_option_and_its_value_is_taken_as_it_is(make, variable, option):
    assert make("pipeline", f"{variable}={NASTY}") == ["-m", "pipelines.local", option, NASTY]


def test_one_may_also_set_them_in_the_environment(make):
    assert make("pipeline", PRESET=NASTY) == ["-m", "pipelines.local", "--preset", NASTY]


def test_a_corpus_of_ones_own_comes_without_the_samples_evaluation_text(make):
    assert make("pipeline", f"CORPUS={NASTY}")[2:] == ["--corpus", NASTY, "--heldout", ""]
    assert make("pipeline", "CORPUS=a", "HELDOUT=b c")[2:] == ["--corpus", "a", "--heldout", "b c"]
    assert make("pipeline", "HELDOUT=")[2:] == ["--heldout", ""]


def test_an_empty_corpus_does_not_mean_the_sample(make):
    """CORPUS=$TEXTS with TEXTS unset: the program refuses it."""
    assert make("pipeline", "CORPUS=", "HELDOUT=x")[2:] == ["--corpus", "", "--heldout", "x"]


def test_args_are_words_for_the_shell(make):
    line = make("pipeline", """ARGS=--corpus "my texts" --model-name '$x' --text-field "$FIELD\"""", FIELD="body")
    assert line[2:] == ["--corpus", "my texts", "--model-name", "$x", "--text-field", "body"]


def test_a_virtual_environment_in_a_path_with_spaces_is_refused_in_one_line(tmp_path):
    line = ["make", "-f", str(REPOSITORY / "Makefile"), "doctor", "VENV=my env"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'VENV is "my env"; make takes no path with spaces, choose another' in done.stderr


def test_submit_and_mlflow_ui_take_their_values_as_they_are_too(make):
    line = make("submit", f"ENDPOINT={NASTY}", f"NAME={NASTY}", f"EXPERIMENT={NASTY}", "ARGS=steps=5")
    assert line == [
        *("--endpoint", NASTY, "run", "create", "-e", NASTY, "-r", NASTY),
        *("-f", "pipelines/compiled/gpt-pipeline.yaml", "steps=5"),
    ]
    line = make("mlflow-ui", f"RUNS={NASTY}", "PORT=5001")
    assert line[-1] == f"{NASTY}/mlartifacts"
    assert f"sqlite:///{NASTY}/mlflow.db" in line
    assert "sqlite:///runs/mlflow.db" in make("mlflow-ui")


def test_clean_removes_the_environment_and_nothing_else(tmp_path, make):
    (tmp_path / "runs").mkdir()
    with pytest.raises(IndexError):  # it prints nothing but the command
        make("-s", "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "constraints.txt", "pyproject.toml", "runs"]
