"""The runner: every benchmark in a process of its own; what fails is said, and does not stop the others."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import run
from bench.benchmark import Options
from bench.machine import Machine, this_machine
from bench.peers import PEERS
from bench.row import Row, read_rows
from modelcore.errors import InputError

MACHINE = Machine("cpu-test", {"processor": "a test"})
ONE = "Row('one x', 'throughput', 2.0, 'tok/s', 'peer', 1.0)"


def bench(*words, **environment):
    """Runs the command as a user does."""
    line = [sys.executable, "-m", "bench", *words]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env=os.environ | environment
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of benchmarks, each given as the body of its function that yields rows."""
    count = iter(range(100))

    def package(**bodies):
        name = f"made_benchmarks_{next(count)}_{os.getpid()}_{tmp_path.name}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(
            f"BENCHMARKS = {tuple(bodies)}\nPEERS = ('nanogpt',)\nTRAINING = ('two',)\n"
        )
        for benchmark, body in bodies.items():
            (folder / f"{benchmark}.py").write_text(
                "import os, sys\nfrom bench.benchmark import main\nfrom bench.row import Row\n"
                f"from modelcore.errors import InputError\ndef rows(options):\n    {body}\nmain(rows)\n"
            )
        return name

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    return package


def test_rows_and_the_machine_are_written_side_by_side(package, tmp_path, capfd):
    out = tmp_path / "rows.jsonl"
    assert run(package(one=f"yield {ONE}"), [], Options(), MACHINE, out) == 0
    assert read_rows(out) == [Row("one x", "throughput", 2.0, "tok/s", "peer", 1.0)]
    assert json.loads((tmp_path / "rows.json").read_text()) == {"processor": "a test"}
    shown = capfd.readouterr()
    assert "one (1 of 1) ..." in shown.err
    assert "left out, because no path to them was given: nanogpt" in shown.err
    assert shown.out.splitlines()[1].split() == ["one", "x", "throughput", "2", "tok/s", "peer", "1", "tok/s", "2.00"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"yield {ONE}; os._exit(3)", ""),
        ("raise InputError('no such shape'); yield", "error: no such shape"),
        ("raise ValueError('bug'); yield", "ValueError: bug"),
        (f"print('noise'); yield {ONE}", "no row of a benchmark: 'noise'"),
        ("yield from ()", "it gave no rows"),
        ("yield Row('other x', 'y', 1.0, 's')", "the row 'other x' does not begin with its benchmark's name, bad"),
    ],
)
def test_a_benchmark_that_fails_is_named_and_the_others_go_on(package, tmp_path, capfd, body, reason):
    out = tmp_path / "rows.jsonl"
    status = run(package(bad=body, one=f"yield {ONE}"), [], Options(), MACHINE, out)
    shown = capfd.readouterr().err
    assert status == 1
    assert [row.name for row in read_rows(out)] == ["one x"]
    assert reason in shown
    assert shown.splitlines()[-1] == "error: failed, and without rows: bad"


def test_a_run_of_some_leaves_the_rows_of_the_others_and_drops_what_failed(package, tmp_path):
    out = tmp_path / "rows.jsonl"
    bodies = {"one": f"yield {ONE}", "two": "yield Row('two', 'time', 1.0, 's')"}
    run(package(**bodies), [], Options(), MACHINE, out)
    assert (
        run(package(**bodies | {"one": "yield Row('one x', 'time', 5.0, 's')"}), ["one"], Options(), MACHINE, out) == 0
    )
    assert [(row.name, row.value) for row in read_rows(out)] == [("one x", 5.0), ("two", 1.0)]
    assert run(package(**bodies | {"two": "os._exit(1); yield"}), ["two"], Options(), MACHINE, out) == 1
    assert [row.name for row in read_rows(out)] == ["one x"]


def test_each_benchmark_has_a_process_of_its_own_and_is_told_the_options(package, tmp_path):
    (tmp_path / "model.py").touch()
    out = tmp_path / "rows.jsonl"
    body = "yield Row(f'{__file__[-6:-3]} {options.peers[\"nanogpt\"].name} {options.small}', 'pid', os.getpid(), 's')"
    options = Options(small=True, peers={"nanogpt": tmp_path})
    run(package(one=body, two=body), [], options, MACHINE, out)
    rows = read_rows(out)
    assert [row.name for row in rows] == [f"one {tmp_path.name} True", f"two {tmp_path.name} True"]
    assert len({rows[0].value, rows[1].value, os.getpid()}) == 3


def test_a_peer_that_nothing_is_measured_beside_is_named(package, tmp_path, capfd):
    for file in PEERS["gptfast"]:
        (tmp_path / file).touch()
    options = Options(peers={"gptfast": tmp_path})
    assert run(package(one=f"yield {ONE}"), [], options, MACHINE, tmp_path / "rows.jsonl") == 0
    told = capfd.readouterr().err
    assert "given, but nothing is measured beside it here: gptfast" in told
    assert "left out, because no path to them was given: nanogpt" in told


def test_an_unknown_benchmark_is_refused_with_the_names_that_are_known(package):
    with pytest.raises(InputError, match="benchmark 'three' is not known; there are: one"):
        run(package(one=f"yield {ONE}"), ["three"], Options(), MACHINE, None)


def test_a_small_run_writes_no_results_by_itself(package, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("bench.__main__.RESULTS", tmp_path / "results")
    assert run(package(one=f"yield {ONE}"), [], Options(small=True), MACHINE, None) == 0
    assert not (tmp_path / "results").exists()
    assert "written" not in capfd.readouterr().out


def test_a_peer_that_is_not_where_it_is_said_to_be_ends_the_command_with_one_line(tmp_path):
    done = bench("cpu", "--peer", f"nanogpt={tmp_path}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: nanogpt is not in '{tmp_path}': there is no model.py; it needs model.py\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cpu", "--peer", "llamacpp=PEER", "nosuch"], "benchmark 'nosuch' is not known"),
        (["cpu", "decoding", "--small", "nosuch", "--set", "steps=2"], "benchmark 'nosuch' is not known"),
        (["gpu", "--peer", "nanogpt=PEER", "card", "--set", "micro_batch_size=2"], "nvidia-smi shows no GPU"),
    ],
)
def test_names_and_options_may_stand_in_any_order(tmp_path, words, message):
    for name in ("llamacpp", "nanogpt"):
        for file in PEERS[name]:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
    done = bench(*(word.replace("PEER", str(tmp_path)) for word in words), PATH="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("rows.json", "does not end in .jsonl"),
        ("rows", "does not end in .jsonl"),
        ("folder.jsonl", "folder.jsonl is no file"),
        ("taken.jsonl", "taken.json is no file"),
        ("/proc/rows.jsonl", "cannot be written: "),
        ("/proc/no/rows.jsonl", "cannot be written: "),
        ("text.txt/rows.jsonl", "cannot be written: "),
        ("latin1.jsonl", "latin1.jsonl holds no rows: it is no UTF-8"),
        ("prose.jsonl", "prose.jsonl: no row of a benchmark: 'prose'"),
    ],
)
def test_a_place_where_rows_cannot_go_is_refused_in_one_line_before_the_work(tmp_path, out, message):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "taken.json").mkdir()
    (tmp_path / "text.txt").touch()
    (tmp_path / "latin1.jsonl").write_bytes(b"\xe9")
    (tmp_path / "prose.jsonl").write_text("prose\n")
    before = sorted(tmp_path.rglob("*"))
    done = bench("cpu", "processor", "--small", "--out", str(tmp_path / out))
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_of_another_kind_and_of_renamed_benchmarks_stay(package, tmp_path):
    out = tmp_path / "rows.jsonl"
    others = [Row("card", "speed", 1.0, "TFLOP/s"), Row("renamed x", "time", 1.0, "s")]
    out.write_text("".join(row.to_json() + "\n" for row in others))
    assert run(package(one=f"yield {ONE}"), [], Options(), MACHINE, out) == 0
    assert [row.name for row in read_rows(out)] == ["one x", "card", "renamed x"]


def test_training_settings_that_have_no_effect_are_said_to_have_none(package, capfd):
    bodies = dict.fromkeys(
        ("one", "two", "three"), "name = __file__[:-3].split('/')[-1]; yield Row(name, 'a', 1.0, 's')"
    )
    made = package(**bodies)
    run(made, [], Options(small=True, settings={"steps": 2}), MACHINE, None)
    assert "--set has no effect on what does no training: one, three\n" in capfd.readouterr().err
    run(made, ["two"], Options(small=True, settings={"steps": 2}), MACHINE, None)
    run(made, [], Options(small=True), MACHINE, None)
    assert "--set" not in capfd.readouterr().err


WAITING = """
    import subprocess, tempfile
    with tempfile.TemporaryDirectory(dir=os.environ["KEPT"]):
        program = "import signal, sys; sys.stderr.write('waiting\\\\n'); sys.stderr.flush(); signal.pause()"
        subprocess.run([sys.executable, "-c", program])
    yield
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("written", [True, False])
def test_a_run_that_is_interrupted_says_what_is_written_and_leaves_nothing_behind(
    package, tmp_path, monkeypatch, number, status, written
):
    made, out = package(one=f"yield {ONE}", two=WAITING), tmp_path / "rows.jsonl"
    (tmp_path / "kept").mkdir()
    monkeypatch.setenv("KEPT", str(tmp_path / "kept"))
    program = (
        "import sys, bench.__main__ as runner\nrun = runner.run\n"
        f"runner.run = lambda package, *rest: run({made!r}, *rest)\nsys.exit(runner.main(sys.argv[1:]))"
    )
    line = [sys.executable, "-c", program, "cpu", "--small", *(["--out", str(out)] if written else [])]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.stderr.readline() not in ("waiting\n", ""):
        pass
    process.send_signal(number)
    _, told = process.communicate(timeout=60)  # it ends when nobody has stderr any more
    assert process.returncode == status
    assert told == f"interrupted; {f'what was done before two is in {out}' if written else 'nothing is written'}\n"
    assert [row.name for row in read_rows(out)] == ["one x"] * written
    assert not list((tmp_path / "kept").iterdir())


def test_the_machine_has_a_name_for_files_and_facts_to_judge_by():
    machine = this_machine("cpu")
    assert machine.name.startswith("cpu-")
    assert machine.name.replace("-", "").isalnum()
    assert {"processor", "memory", "python", "torch", "transformers"} <= machine.facts.keys()


def test_without_a_gpu_the_benchmarks_on_one_say_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="nvidia-smi shows no GPU"):
        this_machine("gpu")
