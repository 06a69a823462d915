"""Which Java Spark is given, and what is said where there is none that it runs on."""

import pytest

from modelcore.errors import InputError
from modelcore.spark.session import find_java


@pytest.fixture
def java(tmp_path, monkeypatch):
    """``java(place, version)`` puts a Java there, that only tells its version; this machine has no other."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")

    def put(place, version):
        program = tmp_path / place / "bin" / "java"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
        program.chmod(0o755)
        return tmp_path / place

    return put


def test_java_home_comes_before_the_shells_java(java, monkeypatch):
    monkeypatch.setenv("PATH", str(java("shell", "17.0.1") / "bin"))
    assert find_java().name == "shell"
    monkeypatch.setenv("JAVA_HOME", str(java("home", "21.0.8")))
    assert find_java().name == "home"


def test_one_that_is_too_old_is_passed_over(java, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(java("old", "1.8.0_292")))
    monkeypatch.setenv("PATH", str(java("shell", "17.0.1") / "bin"))
    assert find_java().name == "shell"


def test_without_one_a_line_says_what_was_found_and_what_to_install(java, monkeypatch):
    with pytest.raises(InputError, match=r"newer \(there is none\); install one, on Debian and Ubuntu the package def"):
        find_java()
    monkeypatch.setenv("JAVA_HOME", str(java("old", "11.0.2")))
    with pytest.raises(InputError, match=r"old has Java 11\); install one"):
        find_java()
