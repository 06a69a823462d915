"""What each process of a job runs."""

import json

import pytest

from modelcore.cluster import job_process


@pytest.fixture
def word(tmp_path, monkeypatch):
    """The file that Kubernetes puts into a pod's status when its container ends."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("MODELCORE_TERMINATION_LOG", str(path))
    return path


def arguments(tmp_path, **changes):
    return json.dumps({"tokens": str(tmp_path / "none"), "out": str(tmp_path / "out")} | changes)


def test_what_was_asked_wrongly_is_one_line_in_the_log_and_in_the_pods_status(word, tmp_path, capsys):
    assert job_process.main(["pretrain", arguments(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {word.read_text()}"
    assert str(tmp_path / "none") in word.read_text()


def test_the_first_failure_of_a_pod_is_the_one_that_stays(word, tmp_path):
    word.write_text("the cause")
    job_process.main(["pretrain", arguments(tmp_path)])
    assert word.read_text() == "the cause"


def test_a_fault_of_ours_keeps_its_traceback_and_leaves_its_type(word, tmp_path):
    with pytest.raises(TypeError):
        job_process.main(["pretrain", arguments(tmp_path, surprise=1)])
    assert word.read_text().startswith("rank 0: TypeError: ")


def test_a_pod_without_such_a_file_is_no_obstacle(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELCORE_TERMINATION_LOG", str(tmp_path / "no" / "file"))
    assert job_process.main(["pretrain", arguments(tmp_path)]) == 1


def test_only_stages_that_run_as_jobs_are_run():
    with pytest.raises(ValueError, match="these are: pretrain, finetune_lora"):
        job_process.main(["evaluate", "{}"])
