"""A run on a cluster, given to a server that takes KFP's v2beta1 as its client package defines it."""

import pytest

from pipelines.cluster_parameters import FOLDER
from pipelines.submit import main
from tests.servers.kfp import KFP

GOOD = ["corpus=s3://bucket/texts", "instructions=s3://bucket/pairs.jsonl"]


@pytest.fixture
def kfp(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's client keeps a file there
    with KFP() as server:
        yield server


def test_the_pipeline_is_begun_with_what_was_typed(kfp, capsys):
    assert main([kfp.address, "--name", "my run", *GOOD, "steps=5", "model_name=2024", "--experiment", "an other"]) == 0
    ((run_id, run),) = kfp.runs.items()
    assert capsys.readouterr().out.endswith(f"my run has begun: {run_id}\n")
    assert run["display_name"] == "my run"
    assert run["runtime_config"]["parameters"] == {
        "corpus": "s3://bucket/texts",
        "instructions": "s3://bucket/pairs.jsonl",
        "heldout": "",
        "steps": 5,
        "model_name": "2024",
    }
    (experiment,) = kfp.experiments.values()
    assert experiment["display_name"] == "an other"
    assert run["experiment_id"] == experiment["experiment_id"]


def test_an_experiment_that_is_there_is_used(kfp):
    assert main([kfp.address, *GOOD]) == main([kfp.address, *GOOD]) == 0
    assert (len(kfp.runs), len(kfp.experiments)) == (2, 1)


@pytest.mark.parametrize("pipeline", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_every_compiled_pipeline_can_be_submitted(kfp, pipeline):
    assert main([kfp.address, "--pipeline", pipeline, *GOOD]) == 0
    (run,) = kfp.runs.values()
    assert pipeline.startswith(run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"].replace("aic-ai-poc-", ""))


@pytest.mark.parametrize("words", [["corpus=s3://bucket/texts"], [*GOOD, "stepz=5"], [*GOOD, "heldout=examples/x"]])
def test_a_mistake_is_one_line_and_no_run_begins(kfp, capsys, words):
    assert main([kfp.address, *words]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not kfp.runs
    assert not kfp.experiments


def test_what_the_server_refuses_is_told_in_its_words(kfp, capsys, monkeypatch):
    refused = (400, {"code": 3, "message": "Validate create run request failed.: Run name is empty"})
    monkeypatch.setattr(kfp, "create", lambda body: refused)
    assert main([kfp.address, *GOOD]) == 1
    wanted = f"error: KFP at {kfp.address} did not take the run: 400 Validate create run request failed.: Run name is"
    assert capsys.readouterr().err.startswith(wanted)


def test_a_server_that_breaks_between_is_one_line_too(kfp, capsys, monkeypatch):
    monkeypatch.setattr(kfp, "create", lambda body: (502, "<html>Bad Gateway</html>"))
    assert main([kfp.address, *GOOD]) == 1
    told = capsys.readouterr().err
    assert told == f"error: KFP at {kfp.address} did not take the run: 502 Bad Gateway\n"


def test_a_server_that_is_away_is_one_line(capsys):
    with KFP() as server:
        address = server.address
    assert main([address, *GOOD]) == 1
    assert capsys.readouterr().err.startswith(f"error: no server answers at {address}")
