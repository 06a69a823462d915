"""Which job a stage's attempt finds, what it leaves behind, and how it ends on days on which nothing goes right."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelcore.cluster.train_job import TrainJob
from modelcore.errors import InputError
from tests.servers.kubernetes_api import Answer
from tests.servers.train_jobs import started_with


def lose_the_pod(monkeypatch, train, **changes):
    """An attempt whose process is gone without a word; here it is left by an error of its own."""

    def die(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("modelcore.cluster.job_stage.Follower.follow", die)
        with pytest.raises(ZeroDivisionError):
            train(**changes)


def attempt(api, task):
    """The stage's pod is from now on an attempt at a task."""
    annotation = {"workflows.argoproj.io/node-name": task}
    api.change("Pod", "run-x-pretrain-1", lambda pod: pod["metadata"].update(annotations=annotation))


def test_every_attempt_of_a_task_with_the_same_inputs_finds_its_job(train, trainer, meanwhile, monkeypatch, tokens):
    lose_the_pod(monkeypatch, train)
    # KFP fetches the inputs anew for each attempt, to a place and with times of its own
    fetched_again = tokens.with_name("tokens-2")
    fetched_again.mkdir()
    (fetched_again / "shard").write_text("tokens")
    attempt(trainer.api, "run-x.root.pretrain-distributed.executor(1)")
    meanwhile(lambda: trainer.live_well())
    train(tokens=fetched_again)
    assert len(trainer.api.all("TrainJob")) == 1


@pytest.mark.parametrize("what", ["content", "name", "task", "in the workspace"])
def test_other_inputs_or_another_task_are_another_job(train, api, monkeypatch, tokens, workspace, what):
    place = tokens
    if what == "in the workspace":
        place = tokens.rename(workspace / "tokens")
    lose_the_pod(monkeypatch, train, tokens=place)
    if what == "task":
        attempt(api, "run-x.root.pretrain-distributed-2.executor(0)")
    elif what == "name":
        (place / "shard").rename(place / "shard-2")
    else:
        (place / "shard").write_text("other text")
    lose_the_pod(monkeypatch, train, tokens=place)
    assert len(api.all("TrainJob")) == 2


@pytest.mark.parametrize("end", ["fails", "is deleted", "is stopped", "has no runtime", "cannot be made"])
def test_copies_of_inputs_stay_for_no_job_that_has_ended(train, trainer, meanwhile, workspace, end):
    seen = []

    def life():
        seen.append(Path(trainer.words()[1]["tokens"]))
        assert seen[0].is_dir()
        (workspace / "jobs" / trainer.name / ".output.training").mkdir()
        if end == "fails":
            trainer.say("Failed", reason="R", message="m")
        elif end == "is deleted":
            trainer.api.delete("TrainJob", trainer.name)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    if end == "cannot be made":
        trainer.api.fail(Answer(422, "Invalid"), when=lambda request: request.verb == "create")
    elif end != "has no runtime":
        meanwhile(life)
    with pytest.raises((InputError, SystemExit)):
        train(**({"runtime": "none"} if end == "has no runtime" else {}))
    assert not list(workspace.rglob("inputs"))
    if seen:
        assert list(workspace.rglob(".output.training")), "a checkpoint to go on from"


def test_copies_of_inputs_stay_while_a_job_reads_them(train, trainer, monkeypatch, workspace, meanwhile, told):
    lose_the_pod(monkeypatch, train)
    assert list(workspace.rglob("inputs"))

    def life():
        told("is followed")
        trainer.api.rules = []
        trainer.api.expire()

    meanwhile(life)
    with pytest.raises(InputError) as error:
        train()
    assert "the cluster refuses to watch" in str(error.value)
    assert f"TrainJob {trainer.name} goes on meanwhile: run the stage again to follow it, or kubectl" in str(
        error.value
    )
    assert list(workspace.rglob("inputs"))


def test_a_stage_that_is_stopped_before_there_is_a_job_says_so(train, trainer, meanwhile, capfd):
    def stop():
        trainer.api.wait_for(lambda: trainer.api.count("get", "clustertrainingruntimes"))
        os.kill(os.getpid(), signal.SIGTERM)

    trainer.api.fail(*[Answer(503, "Busy")] * 1000, when=lambda r: r.resource.plural == "clustertrainingruntimes")
    meanwhile(stop)
    with pytest.raises(SystemExit):
        train()
    trainer.api.recover()
    assert "does not run" in capfd.readouterr().err
    assert not trainer.api.all("TrainJob")


def test_a_job_whose_request_was_under_way_when_the_stage_was_stopped_is_deleted(train, trainer, monkeypatch):
    create = TrainJob.send

    def send_and_be_stopped(job, manifest):
        create(job, manifest)
        job.uid = ""  # the answer is not read any more
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainJob, "send", send_and_be_stopped)
    with pytest.raises(SystemExit):
        train()
    assert trainer.api.count("create", "trainjobs") == 1
    assert not trainer.api.all("TrainJob")


def test_two_launchers_of_the_same_task_make_one_job_and_both_bring_it_home(train, trainer, meanwhile, tmp_path, api):
    second = []

    def start_another():
        second.append(in_another_process(tmp_path, tmp_path / "second"))
        with api.changed:
            api.changed.notify_all()

    meanwhile(start_another)

    def life():
        trainer.make_pods()
        trainer.run_pods()
        api.wait_for(lambda: api.count("watch", "trainjobs") >= 2)
        trainer.complete(loss=1.5)

    meanwhile(life)
    assert train().results == {"loss": 1.5}
    api.wait_for(lambda: second)
    assert second[0].returncode == 0, second[0].stderr
    assert (tmp_path / "second" / "config.json").is_file()
    assert len([r for r in api.requests if r.verb == "create" and r.resource.plural == "trainjobs"]) <= 2
    assert len(api.all("TrainJob")) == 1


def in_another_process(folder, out):
    """The stage as a component's process runs it; its exit status and what it wrote."""
    program = (
        "import sys; from modelcore.cluster.connection import Cluster; Cluster.first_wait = 0.01;"
        "from modelcore.stages.pretrain_distributed import pretrain_distributed as run;"
        "run(tokens=sys.argv[1], out=sys.argv[2], preset='llama-nano', summary=sys.argv[2] + '.json')"
    )
    words = [sys.executable, "-c", program, str(folder / "tokens"), str(out)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_an_error_is_one_line_and_the_exit_status_is_not_zero(api, tokens, workspace, tmp_path):
    api.rules = []
    ended = in_another_process(tmp_path, tmp_path / "out")
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith(("20", "stage="))]
    assert line.startswith("error: the cluster refuses to get pod run-x-pretrain-1: ")


@pytest.mark.parametrize("name", ["a $(AWS_SECRET_ACCESS_KEY) b", "$$ 5 $HOME", 'Größe "1" \\ \n/ä'])
def test_names_with_odd_characters_reach_the_job_as_they_are_and_spell_no_secret(
    train, trainer, meanwhile, monkeypatch, name
):
    monkeypatch.setenv("KFP_RUN_NAME", name)
    meanwhile(lambda: trainer.live_well())
    train(preset=name, checkpoint_uri=f"s3://bucket/{name}")
    assert trainer.words()[1]["preset"] == name
    assert trainer.words()[1]["checkpoint_uri"] == f"s3://bucket/{name}"
    environment = {each["name"]: started_with([each["value"]]) for each in trainer.job()["spec"]["trainer"]["env"]}
    assert environment["KFP_RUN_NAME"] == [name]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", trainer.name)
    assert len(trainer.name) <= 63


@pytest.mark.parametrize("run", ["my run: 5 %", "r" * 64, "-x"])
def test_a_run_whose_id_is_no_label_is_followed_without_it(train, trainer, meanwhile, monkeypatch, run):
    monkeypatch.setenv("KFP_RUN_ID", run)
    meanwhile(lambda: trainer.live_well())
    train()
    assert "pipeline/runid" not in trainer.job()["metadata"]["labels"]
    assert {"name": "KFP_RUN_ID", "value": run} in trainer.job()["spec"]["trainer"]["env"]


def test_a_quota_that_changes_while_the_job_is_made_makes_it_a_moment_later(train, trainer, meanwhile):
    trainer.api.fail(*[Answer(409, "Conflict")] * 2, when=lambda request: request.verb == "create")
    meanwhile(lambda: trainer.live_well())
    train()
    assert trainer.api.count("create", "trainjobs") == 3


def test_a_job_that_never_can_be_made_for_conflicts_is_one_line(train, api):
    api.fail(*[Answer(409, "Conflict")] * 100, when=lambda request: request.verb == "create")
    with pytest.raises(InputError, match=r"TrainJob aic-gpt-pretrain-\w+ cannot be created \(.*, 5 times\)"):
        train()
    api.recover()


@pytest.mark.parametrize("status", [403, 404, 409])
def test_what_is_refused_in_the_middle_ends_the_stage_with_one_line(train, trainer, meanwhile, told, status):
    def life():
        trainer.make_pods()
        trainer.run_pods()
        told("runs on node gpu-0")
        trainer.api.fail(
            *[Answer(status, "Refused")] * 100, when=lambda r: r.verb == "watch" and r.resource.plural == "trainjobs"
        )
        trainer.api.cut()

    meanwhile(life)
    with pytest.raises(InputError) as error:
        train()
    trainer.api.recover()
    assert str(error.value).startswith(f"the cluster refuses to watch TrainJob {trainer.name}: as the test wants it; ")
    assert "\n" not in str(error.value)
    assert trainer.api.find("TrainJob", trainer.name), "it is not ours to end what goes on"


def test_a_log_is_told_whatever_the_clocks_say_and_what_its_reader_says_is_no_line_of_it(
    train, trainer, meanwhile, monkeypatch, capfd, told
):
    """The node's clock is ahead of this pod's by forty minutes."""
    monkeypatch.setattr("modelcore.cluster.follower.time", SimpleNamespace(time=lambda: time.time() - 2400.0))

    def life():
        api = trainer.api
        trainer.make_pods()
        trainer.run_pods()
        trainer.log("line 1", "line 2")
        api.spoil_log(trainer.pod(), "failed to watch the log file: too many open files")
        told("failed to watch the log file: too many open files")
        logs = api.count("get", "pods", "log")
        api.cut()
        api.wait_for(lambda: api.count("get", "pods", "log") > logs)
        trainer.log("line 3")
        trainer.complete(loss=1.0)

    meanwhile(life)
    train()
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("line ")]
    assert lines == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize("end", ["copy", "fetch"])
def test_a_workspace_that_cannot_be_used_is_one_line(train, trainer, meanwhile, monkeypatch, end):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/workspace/jobs")

    if end == "fetch":
        meanwhile(lambda: trainer.live_well())
        monkeypatch.setattr("modelcore.cluster.job_stage.shutil.copytree", refuse)
        told = "what the job made, .*output, cannot be copied to .*out: .*Permission denied"
        monkeypatch.setattr("modelcore.cluster.workspace.JobFolder.share", lambda self, name, place: str(place))
    else:
        monkeypatch.setattr("modelcore.cluster.workspace.shutil.copytree", refuse)
        told = "tokens cannot be copied to .*inputs/tokens for the job: .*Permission denied"
    with pytest.raises(InputError, match=told):
        train()


def test_a_full_workspace_is_one_line_and_leaves_nothing(train, api, monkeypatch, workspace):
    def fill(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modelcore.cluster.workspace.shutil.copytree", fill)
    with pytest.raises(InputError, match=r"no space left on the disk while writing .*inputs/tokens"):
        train()
    assert not [path for path in workspace.rglob("*") if path.is_file() or path.name == "inputs"]
    assert not api.all("TrainJob")
