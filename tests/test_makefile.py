"""What one gives on make's line reaches the program as it is, whatever characters it has."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.local import _load_pipeline, _parser
from pipelines.make_line import VARIABLES, make_line

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
    "RUNNER": "--runner",
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


def test_what_the_shell_happens_to_have_in_its_environment_is_not_taken(make):
    """WSL, for one, sets NAME to the computer's."""
    shells = dict.fromkeys([*OPTIONS, "CORPUS", "ARGS", "PORT", "EXPERIMENT"], NASTY)
    assert make("pipeline", **shells) == ["-m", "pipelines.local"]
    assert make("pipeline", "STEPS=5", **shells) == ["-m", "pipelines.local", "--steps", "5"]
    line = make("mlflow-ui", **shells)
    assert ("5000" in line, "sqlite:///runs/mlflow.db" in line) == (True, True)
    line = make("submit", "ENDPOINT=http://here", **shells)
    assert line == ["-m", "pipelines.submit", "http://here"]


def test_help_names_every_variable_of_the_pipeline():
    done = subprocess.run(["make", "-C", REPOSITORY, "help"], capture_output=True, text=True, check=True)
    assert {*OPTIONS, "CORPUS", "ARGS"} <= set(re.findall("[A-Z_]+", done.stdout))


def test_help_names_what_each_other_target_takes():
    text = (REPOSITORY / "Makefile").read_text()
    variables = re.search(r"^VARIABLES := ((?:.*\\\n)*.*)", text, re.M)[1].replace("\\\n", " ").split()
    done = subprocess.run(["make", "-C", REPOSITORY, "help"], capture_output=True, text=True, check=True)
    told = dict(re.findall(r"^  ([a-z-]+) +(.*)$", done.stdout, re.M))
    for target, recipe in re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", text, re.M):
        taken = {name for name in variables if re.search(rf"(call option,|\$\$\{{?){name}\b", recipe)}
        taken |= {"ARGS"} if "$(words)" in recipe else set()
        if target not in ("help", "pipeline") and taken:
            assert taken <= set(re.findall("[A-Z_]+", told[target])), target


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
    assert line == ["-m", "pipelines.submit", NASTY, "--name", NASTY, "--experiment", NASTY, "steps=5"]
    line = make("mlflow-ui", f"RUNS={NASTY}", "PORT=5001")
    assert line[-1] == f"{NASTY}/mlartifacts"
    assert f"sqlite:///{NASTY}/mlflow.db" in line
    assert "sqlite:///runs/mlflow.db" in make("mlflow-ui")


def test_the_pipeline_on_a_cluster_takes_its_name_and_words_for_kfp(make):
    assert make("local-pipeline") == ["-m", "pipelines.kind", "up"]
    line = make("local-pipeline", f"NAME={NASTY}", "ARGS=steps=300 'corpus=s3://my texts'")
    assert line == ["-m", "pipelines.kind", "up", "--name", NASTY, "steps=300", "corpus=s3://my texts"]
    assert make("local-pipeline-down") == ["-m", "pipelines.kind", "down"]


PEERS = {"NANOGPT": "nanogpt", "LITGPT": "litgpt", "GPTFAST": "gptfast", "LLAMACPP": "llamacpp"}


@pytest.mark.parametrize(("target", "kind"), [("bench", "cpu"), ("bench-gpu", "gpu")])
def test_bench_takes_the_peers_folders_and_words_for_the_shell(make, target, kind):
    assert make(target, **dict.fromkeys(PEERS, NASTY)) == ["-m", "bench", kind]
    folders = [f"{name}={NASTY}" for name in PEERS]
    given = [word for name in PEERS.values() for word in ("--peer", f"{name}={NASTY}")]
    assert make(target, *folders, "ARGS=training --small") == ["-m", "bench", kind, *given, "training", "--small"]


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("images", {"ENGINE": "--engine", "DEVICE": "--device", "BASE_IMAGE": "--base-image"}),
        ("images-check", {"ENGINE": "--engine"}),
    ],
)
def test_the_images_take_the_engine_and_what_they_are_built_from(make, target, options):
    program = ["-m", {"images": "components.images.build", "images-check": "components.images.check"}[target]]
    assert make(target, ENGINE=NASTY, DEVICE=NASTY) == program
    for variable, option in options.items():
        assert make(target, f"{variable}={NASTY}") == [*program, option, NASTY]
    assert make(target, "ARGS=--spark") == [*program, "--spark"]


def test_clean_removes_the_environment_and_nothing_else(tmp_path, make):
    (tmp_path / "runs").mkdir()
    with pytest.raises(IndexError):  # it prints nothing but the command
        make("-s", "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "constraints.txt", "pyproject.toml", "runs"]


def test_the_pipeline_knows_the_makefiles_variables():
    assert {name.upper() for name in VARIABLES} == OPTIONS.keys() - {"NAME", "RUNS"} | {"CORPUS"}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"steps": 300, "seed": 1, "corpus": "my/texts", "heldout": ""},
        {"corpus": NASTY, "heldout": NASTY, "text_field": NASTY, "model_name": "it's"},
        {"heldout": "", "learning_rate": -0.5, "user_symbols": "<a> $b", "optimizer": "adamw"},
        {"corpus": "mine", "batch_size": 4, "preset": "my recipe.yaml"},
    ],
)
def test_the_line_to_go_on_with_starts_the_run_with_the_same_parameters(make, given):
    parser = _parser(_load_pipeline())
    defaults = {key: value for key, value in vars(parser.parse_args([])).items() if key not in ("name", "runs")}
    line = make_line("night", "my runs", defaults | given, defaults)
    assert line.startswith("make pipeline NAME=night RUNS='my runs'")
    options = vars(parser.parse_args(make(*shlex.split(line)[1:])[2:]))
    assert options == defaults | given | {"name": "night", "runs": "my runs"}


def test_the_line_is_as_one_would_type_it():
    defaults = {"corpus": "sample", "heldout": "test", "seed": 0, "batch_size": 0, "optimizer": "recipe"}
    given = {"corpus": "my texts", "heldout": "", "seed": 0, "batch_size": 4, "optimizer": "adamw"}
    line = make_line("night", None, given, defaults)
    assert line == """make pipeline NAME=night CORPUS='my texts' ARGS="--batch-size=4 --optimizer=adamw\""""
