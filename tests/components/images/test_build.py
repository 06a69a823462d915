"""How the engine is asked to build an image."""

import subprocess
import sys
from pathlib import Path

import pytest

from components.images import DATA_IMAGE, IMAGES, MODEL_IMAGE, SPARK, build
from components.images.engine import Engine
from modelcore.errors import InputError

DATA, MODEL, *_ = IMAGES
REMOTES = {
    "https://token:x-oauth@git.example.org/team/gpt.git": "https://git.example.org/team/gpt",
    "git@git.example.org:team/gpt.git": "https://git.example.org/team/gpt",
    "ssh://git@git.example.org/team/gpt": "https://git.example.org/team/gpt",
    "/home/someone/gpt": "unknown",
    "": "unknown",
}


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """``engine(name, script)`` is an engine whose program is a shell script."""

    def made(name="docker", script="exit 0"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        return Engine(name)

    return made


def arguments(words):
    return dict(words[n + 1].partition("=")[::2] for n, word in enumerate(words) if word == "--build-arg")


def test_labels_say_version_revision_and_code(engine):
    given = arguments(build.build_words(DATA, engine()))
    assert given["VERSION"] == DATA_IMAGE.rpartition(":")[2]
    assert len(given["CODE"]) == 64
    assert given["REVISION"]


def test_cuda_and_the_base_image_are_build_arguments(engine):
    given = arguments(build.build_words(MODEL, engine(), base_image="mirror/python:3.12", device="cuda"))
    assert (given["BASE_IMAGE"], given["DEVICE"]) == ("mirror/python:3.12", "cuda")
    assert "DEVICE" not in arguments(build.build_words(DATA, engine(), device="cuda"))


def test_the_spark_image_is_built_on_the_data_image_and_only_when_it_is_asked_for(engine, capfd):
    engine("docker", '[ "$1" = info ] || echo "$@"')
    assert build.main(["--engine", "docker"]) == 0
    assert SPARK.name not in capfd.readouterr().out
    assert build.main(["--engine", "docker", "--spark"]) == 0
    built = [arguments(line.split()) for line in capfd.readouterr().out.splitlines()]
    assert len(built) == len(IMAGES) + 1
    assert built[-1]["BUILT_ON"] == DATA_IMAGE
    assert not any("BUILT_ON" in given for given in built[:-1])


def test_podman_is_asked_for_the_format_that_keeps_health_checks(engine):
    assert "--format" in build.build_words(DATA, engine("podman"))
    assert "--format" not in build.build_words(DATA, engine("docker"))


def test_where_pip_finds_packages_is_passed_by_name_so_that_no_password_stands_on_the_line(engine, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@pip.example.org")
    words = build.build_words(MODEL, engine())
    assert "PIP_INDEX_URL" in words
    assert not any("secret" in word for word in words)


@pytest.mark.parametrize(("remote", "source"), REMOTES.items(), ids=str)
def test_the_source_label_has_no_credentials_and_no_path_of_this_machine(engine, monkeypatch, remote, source):
    monkeypatch.setattr(build, "_git", lambda *words: remote if "get-url" in words else "")
    assert arguments(build.build_words(DATA, engine()))["SOURCE"] == source


def test_the_code_digest_follows_the_code_and_not_what_python_leaves_beside_it(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(build.modelcore, "__file__", str(tmp_path / "__init__.py"))
    before = build.code_digest()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    assert build.code_digest() == before
    (tmp_path / "a.py").write_text("a = 2\n")
    assert build.code_digest() != before


def test_docker_is_taken_before_podman_and_podman_where_docker_does_not_answer(engine):
    engine("podman")
    engine("docker")
    assert Engine().program == "docker"
    with pytest.raises(InputError):
        engine("docker", "exit 1")
    assert Engine().program == "podman"


def test_without_an_engine_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="docker or podman is not installed here; install Docker or Podman"):
        Engine()


def test_an_engine_that_does_not_answer_is_one_line_with_its_own_words(engine):
    with pytest.raises(InputError, match=r"no container engine answers \(docker: Cannot connect"):
        engine("docker", "echo 'Cannot connect to the daemon' >&2; exit 1")


def test_a_failed_build_ends_with_a_failing_status_and_the_next_image_is_not_begun(engine, capfd, monkeypatch):
    engine("docker", '[ "$1" = info ] && exit 0; echo "building $3"; exit 3')
    assert build.main(["--engine", "docker"]) == 1
    said = capfd.readouterr()
    assert said.out.splitlines() == [f"building {DATA.dockerfile}"]
    assert said.err.splitlines()[-1] == "error: docker build failed; what it said stands above"


def test_every_image_that_components_name_has_a_dockerfile_in_the_repository():
    assert {DATA_IMAGE, MODEL_IMAGE} <= {image.name for image in IMAGES}
    for image in (*IMAGES, SPARK):
        assert (build.REPOSITORY / image.dockerfile).is_file()


def test_dockerfiles_are_clean_to_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, *(build.REPOSITORY / image.dockerfile for image in (*IMAGES, SPARK))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
