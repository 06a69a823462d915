"""Stages in containers without an engine: what one would be asked for, and what is made of its answers."""

import os
from types import SimpleNamespace

import docker
import pytest
from kfp.local import docker_task_handler

from components.images import DATA_IMAGE, MODEL_IMAGE
from components.images.build import CODE_LABEL, code_digest
from modelcore import relay
from modelcore.errors import InputError
from pipelines.stage_containers import Containers, _run_container
from pipelines.stage_log import StageLog

PARAMETERS = {"heldout": "", "preset": "llama-nano", "steps": 5}


class Images(dict):
    def get(self, name):
        if name not in self:
            raise docker.errors.ImageNotFound(name)
        return SimpleNamespace(labels=self[name])


@pytest.fixture
def engine(monkeypatch):
    """A client of an engine that has the images; what it is asked to run is noted."""
    labels = {CODE_LABEL: code_digest()}
    client = SimpleNamespace(
        close=lambda: None,
        info=lambda: {"SecurityOptions": ["name=seccomp"]},
        images=Images({DATA_IMAGE: labels, MODEL_IMAGE: dict(labels)}),
    )
    monkeypatch.setattr(docker, "from_env", lambda: client)
    return client


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder and parameters, and the driver's environment."""
    (tmp_path / "socket").mkdir()
    (tmp_path / "socket" / "relay").touch()
    (tmp_path / "texts").mkdir()
    (tmp_path / "pairs.jsonl").touch()
    monkeypatch.setenv(relay.ADDRESS, str(tmp_path / "socket" / "relay"))
    monkeypatch.setenv("MODELCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    parameters = PARAMETERS | {
        "corpus": str(tmp_path / "texts"),
        "instructions": str(tmp_path / "pairs.jsonl"),
        "checkpoint_uri": str(tmp_path / "work" / "training"),
    }
    return tmp_path / "work" / "kfp", parameters


def arguments(run, **changes):
    root, parameters = run
    with Containers().running(root, parameters | changes) as runner:
        return runner.container_run_args


def test_a_container_has_1_gib_without_swap_1_processor_no_rights_and_a_read_only_root(engine, run):
    given = arguments(run)
    assert (given["mem_limit"], given["memswap_limit"], given["nano_cpus"]) == (1 << 30, 1 << 30, 10**9)
    assert (given["read_only"], list(given["tmpfs"]), given["cap_drop"]) == (True, ["/tmp"], ["ALL"])
    assert "no-new-privileges" in given["security_opt"]


def test_stages_run_as_who_calls_and_roots_as_nobody_in_particular(engine, run, monkeypatch):
    monkeypatch.setattr(os, "chown", lambda *arguments, **named: None)
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 56)
    assert arguments(run)["user"] == "1234:56"
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert arguments(run)["user"] == "10001:10001"
    engine.info = lambda: {"SecurityOptions": ["name=rootless"]}
    assert arguments(run)["user"] == "0:0"  # in a container of an engine without root's rights that is who calls


def test_what_a_run_reads_is_mounted_to_read_where_it_stands_and_what_it_writes_to_write(engine, run, tmp_path):
    mounts = {mount["Target"]: mount for mount in arguments(run)["mounts"]}
    read = {str(tmp_path / name) for name in ("texts", "pairs.jsonl")}
    assert {target for target, mount in mounts.items() if mount["ReadOnly"]} == read
    assert mounts.keys() - read == {str(tmp_path / p) for p in ("socket", "cache", "work/tmp", "work/training")}
    assert all(mount["Source"] == target for target, mount in mounts.items())


def test_a_link_is_mounted_as_what_it_points_to(engine, run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "texts")
    mounts = {m["Target"]: m["Source"] for m in arguments(run, corpus=str(tmp_path / "link"))["mounts"]}
    assert mounts[str(tmp_path / "link")] == str(tmp_path / "texts")


def test_a_stage_has_neither_a_network_nor_a_secret_where_all_is_on_this_machine(engine, run):
    given = arguments(run)
    assert given["network_mode"] == "none"
    assert given["environment"]["MLFLOW_TRACKING_URI"] == relay.URI
    assert not any("secret" in value for value in given["environment"].values())


def test_with_s3_it_gets_the_network_and_what_signs_in_there(engine, run):
    given = arguments(run, corpus="s3://bucket/texts")
    assert (given["network_mode"], given["environment"]["AWS_SECRET_ACCESS_KEY"]) == ("host", "secret")
    assert "MLFLOW" not in "".join(given["environment"]).replace("MLFLOW_TRACKING_URI", "")


def test_kfps_own_way_to_run_a_container_is_back_afterwards(engine, run):
    theirs = docker_task_handler.run_docker_container
    root, parameters = run
    with Containers().running(root, parameters):
        assert docker_task_handler.run_docker_container is _run_container
    assert docker_task_handler.run_docker_container is theirs


def test_without_an_engine_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(
        InputError, match=r"^the Docker engine cannot be used \(.*\); start it, or leave out RUNNER=docker$"
    ):
        Containers()


@pytest.mark.parametrize("image", [DATA_IMAGE, MODEL_IMAGE])
def test_a_missing_image_is_one_line_that_names_make_images(engine, image):
    del engine.images[image]
    with pytest.raises(InputError, match=f"^there is no image {image}; build it first: make images$"):
        Containers()


def test_an_image_made_of_other_code_is_refused(engine):
    engine.images[MODEL_IMAGE][CODE_LABEL] = "0" * 64
    with pytest.raises(InputError, match=f"^image {MODEL_IMAGE} was made of other code .*: make images$"):
        Containers()


class Container:
    """A container that has ended by the time anything is asked of it."""

    def __init__(self, status=0, said=b"", *, killed=False, removed=False):
        self.status, self.said, self.removed = status, said, removed
        self.attrs = {"State": {"OOMKilled": killed}}

    def logs(self, **_):
        if self.removed:
            raise docker.errors.NotFound("no such container")
        return iter([self.said[n : n + 1] for n in range(len(self.said))])

    def wait(self):
        if self.removed:
            raise docker.errors.NotFound("no such container")
        return {"StatusCode": self.status}

    def reload(self):
        pass

    def remove(self):
        self.removed = True


def client_of(container):
    image = SimpleNamespace(tags=[DATA_IMAGE], attrs={"RepoDigests": []})

    def run(**arguments):
        container.removed = container.removed or arguments.get("auto_remove", False)
        return container

    return SimpleNamespace(images=SimpleNamespace(list=lambda: [image]), containers=SimpleNamespace(run=run))


COMMAND = ["sh", "-ec", "program", "--executor_input", "{}", "--function_to_execute", "pretrain"]


def test_kfps_own_way_takes_a_container_that_failed_at_once_for_a_success():
    """kubeflow/pipelines#13332; the day this fails, KFP has mended it, and ours can go."""
    failed = client_of(Container(3, b"error: no\n"))
    assert docker_task_handler.run_docker_container(failed, DATA_IMAGE, COMMAND, {}) == 0


def test_ours_has_the_status_and_the_words_of_a_container_that_failed_at_once(capsys, tmp_path):
    container = Container(3, "error: the recipe says “no”\n".encode())
    assert _run_container(client_of(container), DATA_IMAGE, COMMAND, {}) == 3
    assert container.removed
    with open(tmp_path / "log", "w") as file:
        log = StageLog(file, file)
        log.write(capsys.readouterr().out)
    assert log.failure() == "stage pretrain failed: the recipe says “no”"


def test_a_stage_that_was_killed_for_want_of_memory_is_said_to_be(capsys, tmp_path):
    assert _run_container(client_of(Container(137, b"Killed\n", killed=True)), DATA_IMAGE, COMMAND, {}) == 137
    with open(tmp_path / "log", "w") as file:
        log = StageLog(file, file)
        log.write(capsys.readouterr().out)
    assert log.failure() == "stage pretrain failed: it needs more than the 1024 MiB of memory that a container has"
