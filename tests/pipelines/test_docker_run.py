"""The pipeline in real containers: the same bytes as in processes, and every failure told."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelcore.files import content_digest
from pipelines import stage_containers

pytestmark = pytest.mark.engine

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    *("--vocab-size", "400", "--steps", "24", "--batch-size", "4", "--sequence-length", "64"),
    *("--lora-steps", "3", "--lora-rank", "2", "--task-items", "20"),
]
# What is the same whatever the stages run in: everything but pages and tables, which tell times.
SAME = ("data/train", "data/heldout", "tokenizer", "tokens", "checkpoint/model.safetensors", "adapter", "export")


@pytest.fixture(scope="module")
def containers():
    """How to run stages in containers; without an engine or images tests are skipped, or fail where they must run."""
    from modelcore.errors import InputError

    try:
        return stage_containers.Containers()
    except InputError as error:
        if os.environ.get("ENGINE_TESTS") == "required":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own text")
    novel = (REPOSITORY / "examples/austen/train/emma.txt").read_text(encoding="utf-8")
    (folder / "train").mkdir()
    (folder / "train" / "a.txt").write_text(novel[:40_000], encoding="utf-8")
    (folder / "heldout.txt").write_text(novel[100_000:110_000], encoding="utf-8")
    pairs = [{"prompt": f"Is it {n} o'clock?", "response": f"It is {n}, sir."} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return [
        *("--corpus", str(folder / "train"), "--heldout", str(folder / "heldout.txt")),
        *("--instructions", str(folder / "pairs.jsonl")),
    ]


def start(runs, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.local", "--runs", str(runs), *SMALL, *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def left_of(runs):
    """Containers of runs in a folder."""
    import docker

    client = docker.from_env()
    found = client.containers.list(all=True, filters={"label": "aic-ai-poc-gpt.run"})
    client.close()
    return [c for c in found if c.labels["aic-ai-poc-gpt.run"].startswith(f"{runs}/")]


@pytest.fixture(scope="module")
def finished(containers, tmp_path_factory, sample):
    """The same run in containers, interrupted once and taken up again, and in processes."""
    inside, outside = tmp_path_factory.mktemp("containers"), tmp_path_factory.mktemp("processes")
    stopped = start(inside, "--name", "a", "--runner", "docker", *sample)
    for line in stopped.stderr:
        if "stage=pretrain status=started" in line:
            stopped.send_signal(signal.SIGINT)
            break
    _, said = stopped.communicate(timeout=120)
    running = left_of(inside)
    again = start(inside, "--name", "a", "--runner", "docker", *sample)
    processes = start(outside, "--name", "a", *sample)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    _, theirs = processes.communicate(timeout=600)
    assert processes.returncode == 0, theirs
    return inside / "a", outside / "a", (stopped.returncode, said, running), (out, err)


def test_in_containers_it_makes_the_same_bytes_as_in_processes(finished):
    inside, outside, *_ = finished
    for place in SAME:
        digests = [(content_digest if (run / place).is_dir() else digest)(run / place) for run in (inside, outside)]
        assert digests[0] == digests[1], place


def digest(path):
    return path.read_bytes()


def test_the_table_has_each_stages_peak_and_none_is_over_1_gib(finished):
    inside, _, _, (out, _) = finished
    peaks = {
        path.stem: json.loads(path.read_text())["peak_memory_mib"]
        for path in (inside / "report" / "summaries").glob("*.json")
    }
    assert len(peaks) == 9
    assert all(10 < peak < 1024 for peak in peaks.values()), peaks
    assert all(re.search(rf"^{stage} .* MiB", out, re.MULTILINE) for stage in peaks)


def test_what_it_made_belongs_to_who_ran_it_and_no_container_is_left(finished):
    inside, *_ = finished
    owners = {path.lstat().st_uid for path in inside.parent.rglob("*")}
    assert owners == {os.getuid()}
    assert left_of(inside.parent) == []
    assert not (inside / ".work").exists()


def test_interrupted_it_ends_its_containers_and_says_how_to_go_on(finished):
    _, _, (status, said, running), (_, err) = finished
    assert (status, running) == (130, [])
    assert re.search(r"go on with: make pipeline NAME=a .*RUNNER=docker", said)
    assert err.count("cache=hit") == 3  # the stages before pretraining


def test_the_model_is_registered_though_no_container_reaches_mlflow(finished):
    import mlflow

    inside, *_ = finished
    client = mlflow.MlflowClient(f"sqlite:///{inside.parent / 'mlflow.db'}")
    assert client.get_model_version_by_alias("aic-gpt", "champion").version == 1
    runs = client.search_runs([client.get_experiment_by_name("aic-ai-poc-gpt").experiment_id])
    done = {run.info.run_name for run in runs if run.info.status == "FINISHED"}
    assert done >= {"a", "validate_data", "pretrain", "register_model", "write_report"}


def test_a_stage_that_fails_is_told_in_one_line_with_its_own_words(containers, tmp_path, sample):
    run = start(tmp_path, "--name", "b", "--runner", "docker", "--vocab-size", "100000", *sample)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, out) == (1, "")
    assert re.search(
        r"^error: stage train_tokenizer failed: .*100000.*\n.*the same NAME=b RUNS=.* RUNNER=docker", err, re.M
    )
    assert "Traceback" not in err
    assert left_of(tmp_path) == []


@pytest.fixture
def run_command(containers, tmp_path, monkeypatch):
    """``run_command(line)`` runs a shell's line as a stage, as KFP would; returns the status and what was printed."""
    from docker import from_env

    from components.images import DATA_IMAGE

    monkeypatch.setenv(stage_containers.relay.ADDRESS, str(tmp_path / "relay" / "socket"))
    monkeypatch.setenv("MODELCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "relay").mkdir()
    given = {
        "corpus": "",
        "heldout": "",
        "instructions": "",
        "preset": "llama-nano",
        "checkpoint_uri": str(tmp_path / "c"),
    }

    def run(line):
        client = from_env()
        root = tmp_path / "work" / "kfp"
        with containers.running(root, given) as runner:
            command = ["sh", "-c", line, "--function_to_execute", "pretrain"]
            volumes = {str(root): {"bind": str(root), "mode": "rw"}}
            return stage_containers._run_container(client, DATA_IMAGE, command, volumes, **runner.container_run_args)

    return run


def test_a_container_that_fails_at_once_is_never_taken_for_a_success(run_command, capsys):
    for number in range(1, 6):
        assert run_command(f"echo error: no number {number} >&2; exit {number}") == number
        assert f"error: no number {number}\n" in capsys.readouterr().out


def test_a_stage_that_needs_more_than_1_gib_is_killed_and_said_to_have_been(run_command, capsys):
    assert run_command("python -c 'b = bytearray(2 << 30)'") != 0
    assert "error: it needs more than the 1024 MiB of memory that a container has" in capsys.readouterr().out


def test_a_stage_can_write_to_its_folders_and_to_nothing_else(run_command, capsys):
    assert run_command("id -u && touch /tmp/a $TMPDIR/a $MODELCORE_CACHE/a") == 0
    assert capsys.readouterr().out.startswith(f"{os.getuid() or stage_containers.USER}\n")
    assert run_command("touch /a /opt/a /etc/a /root/a") == 1
    said = capsys.readouterr().out
    assert said.count("Read-only file system") + said.count("Permission denied") == 4
