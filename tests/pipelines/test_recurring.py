"""Scheduled retraining, given to a server that takes KFP's v2beta1 as its client package defines it."""

import pytest
import yaml

from pipelines.recurring import main
from tests.servers.kfp import KFP

CORPUS, PAIRS = "corpus=s3://bucket/new", "instructions=s3://bucket/pairs.jsonl"


@pytest.fixture
def kfp(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's client keeps a file there
    with KFP() as server:
        yield server


def test_each_night_the_pipeline_that_checks_first_is_run_and_runs_do_not_overlap(kfp, capsys):
    words = [CORPUS, PAIRS, "steps=500", "max_token_distance=0.4", "model_name=ours"]
    assert main([kfp.address, *words]) == 0
    (recurring,) = kfp.recurring.values()
    assert capsys.readouterr().out.endswith(f"gpt-retrain runs at '0 0 3 * * *': {recurring['recurring_run_id']}\n")
    assert recurring["display_name"] == "gpt-retrain"
    assert recurring["mode"] == "ENABLE"
    assert recurring["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert (recurring["max_concurrency"], recurring["no_catchup"]) == ("1", True)
    given = recurring["runtime_config"]["parameters"]
    assert given == {
        "corpus": "s3://bucket/new",
        "instructions": "s3://bucket/pairs.jsonl",
        "steps": 500,
        "max_token_distance": 0.4,
        "model_name": "ours",
    }
    assert recurring["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "aic-ai-poc-gpt-retrain"
    (experiment,) = kfp.experiments.values()
    assert recurring["experiment_id"] == experiment["experiment_id"]


def test_the_same_name_again_takes_the_place_of_the_earlier_schedule_and_others_stay(kfp):
    for words in (["--name", "other"], [], ["--cron", "0 30 * * * *"]):
        assert main([kfp.address, CORPUS, PAIRS, *words]) == 0
    found = {one["display_name"]: one["trigger"]["cron_schedule"]["cron"] for one in kfp.recurring.values()}
    assert found == {"other": "0 0 3 * * *", "gpt-retrain": "0 30 * * * *"}
    assert len(kfp.recurring) == 2


def test_the_enterprise_profiles_pipeline_can_be_scheduled_too(kfp):
    assert (
        main([kfp.address, "--profile", "enterprise", "corpus=/workspace/texts", "instructions=/workspace/p.jsonl"])
        == 0
    )
    (recurring,) = kfp.recurring.values()
    assert "aic-gpt-workspace" in yaml.safe_dump(recurring["pipeline_spec"]["platform_spec"])


def test_what_kfp_refuses_leaves_the_schedule_that_was_there(kfp, capsys, monkeypatch):
    assert main([kfp.address, CORPUS, PAIRS]) == 0
    before = dict(kfp.recurring)
    monkeypatch.setattr(kfp, "schedule", lambda body: (400, {"code": 3, "message": "invalid cron"}))
    assert main([kfp.address, CORPUS, PAIRS, "--cron", "0 0 99 * * *"]) == 1
    assert "did not take the schedule: 400 invalid cron" in capsys.readouterr().err
    assert kfp.recurring == before


def test_an_earlier_schedule_that_does_not_go_is_told_and_goes_the_next_time(kfp, capsys, monkeypatch):
    assert main([kfp.address, CORPUS, PAIRS]) == 0
    with monkeypatch.context() as patch:
        answer = kfp.answer
        refused = (500, {"code": 13, "message": "the database is locked"})
        patch.setattr(kfp, "answer", lambda method, *asked: refused if method == "DELETE" else answer(method, *asked))
        assert main([kfp.address, CORPUS, PAIRS]) == 1
    assert len(kfp.recurring) == 2
    wanted = (
        "did not take the end of the earlier schedule, so there may be two now; run this again: 500 the database is"
    )
    assert wanted in capsys.readouterr().err
    assert main([kfp.address, CORPUS, PAIRS]) == 0
    assert len(kfp.recurring) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([CORPUS, PAIRS, "stepz=5"], "there is no parameter stepz; known: batch_size, "),
        ([], "corpus is missing; give s3://bucket/texts"),
        ([CORPUS], "instructions is missing; give s3://bucket/pairs.jsonl"),
        (
            ["corpus=examples/austen/train", PAIRS],
            "corpus is 'examples/austen/train', where pods find nothing; give s3",
        ),
        ([CORPUS, "instructions=pairs.jsonl"], "instructions is 'pairs.jsonl', where pods find nothing; give s3"),
        ([CORPUS, PAIRS, "heldout=test"], "heldout is 'test', where pods find nothing; give s3"),
        ([CORPUS, PAIRS, "checkpoint_uri=s3://bucket/c"], "checkpoint_uri is 's3://bucket/c'; leave it out: all runs"),
        ([CORPUS, PAIRS, "--cron", "0 3 * * *"], "cron is '0 3 * * *'; give six fields"),
        ([CORPUS, PAIRS, "--cron", ""], "cron is ''; give six fields"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_scheduled(kfp, capsys, words, message):
    assert main([kfp.address, *words]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not kfp.recurring


def test_a_server_that_is_away_is_one_line(capsys):
    with KFP() as server:
        address = server.address
    assert main([address, CORPUS, PAIRS]) == 1
    assert capsys.readouterr().err.startswith(f"error: no server answers at {address}")
