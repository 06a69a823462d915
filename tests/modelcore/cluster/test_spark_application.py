"""A stage that is run by a SparkApplication, on a cluster that is a stand-in: what it asks for, and how it ends."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from modelcore.errors import InputError
from modelcore.stages.stage import StageSummary
from modelcore.stages.text_on_spark import tokenize_corpus_spark, validate_data_spark
from tests.servers.kubernetes_api import Lost
from tests.servers.train_jobs import started_with

KIND = "SparkApplication"
RULES = Path(__file__).parents[3] / "manifests" / "overlays" / "enterprise" / "spark" / "pipeline-runner.yaml"


class Operator:
    """Plays the life of the one application that a stage makes: the operator, its driver, and what that writes."""

    def __init__(self, api):
        self.api = api

    def application(self):
        return self.api.wait_for(lambda: self.api.all(KIND))[0]

    @property
    def name(self):
        return self.application()["metadata"]["name"]

    def call(self):
        stage, arguments = started_with(self.application()["spec"]["arguments"])
        return stage, json.loads(arguments)

    def run(self):
        labels = {"sparkoperator.k8s.io/app-name": self.name, "spark-role": "driver"}
        owner = {"apiVersion": "sparkoperator.k8s.io/v1beta2", "kind": KIND, "name": self.name}
        owner |= {"uid": self.application()["metadata"]["uid"]}
        metadata = {"name": f"{self.name}-driver", "labels": labels, "ownerReferences": [owner]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        spec = {"containers": [{"name": "spark-kubernetes-driver"}], "nodeName": "node-1"}
        self.api.create(pod | {"spec": spec, "status": {"phase": "Running"}})
        self.set("RUNNING")

    def set(self, state, message=""):
        told = {"applicationState": {"state": state, "errorMessage": message}}
        self.api.change(KIND, self.name, lambda each: each.update(status=told))

    def complete(self):
        stage, call = self.call()
        for folder in [Path(value) for name, value in call.items() if name == "out" or name.endswith("_out")]:
            folder.mkdir(parents=True)
            (folder / "made").write_text(folder.name)
        StageSummary(stage, results={"documents": 3}).save(Path(call["summary"]))
        self.api.change("Pod", f"{self.name}-driver", lambda pod: pod["status"].update(phase="Succeeded"))
        self.set("COMPLETED")

    def fail(self, message, log):
        end = {"exitCode": 1, "reason": "Error", "message": log, "finishedAt": "2026-01-01T00:00:00Z"}
        container = {"name": "spark-kubernetes-driver", "state": {"terminated": end}}
        status = {"phase": "Failed", "containerStatuses": [container]}
        self.api.change("Pod", f"{self.name}-driver", lambda pod: pod.update(status=status))
        self.set("FAILED", message)


@pytest.fixture
def operator(api):
    api.rules = [rule for each in yaml.safe_load_all(RULES.read_text()) for rule in each.get("rules", [])]
    return Operator(api)


@pytest.fixture
def validate(workspace, tmp_path):
    (workspace / "corpus.txt").write_text("text")
    outputs = {f"{name}_out": tmp_path / name for name in ("train", "heldout", "quarantine", "docs")}
    return lambda **changes: validate_data_spark(
        **{"corpus": str(workspace / "corpus.txt"), "executors": 3, "image": "registry/spark:1", **outputs, **changes}
    )


def good_life(operator):
    operator.run()
    operator.complete()


def test_it_makes_an_application_follows_it_and_brings_home_every_output(validate, operator, meanwhile, tmp_path, told):
    meanwhile(lambda: good_life(operator))
    summary = validate(summary=tmp_path / "summary.json", languages="en")
    assert summary.results == {"documents": 3}
    for name in ("train", "heldout", "quarantine", "docs"):
        assert (tmp_path / name / "made").read_text() == f"{name}_out"
    assert StageSummary.load(tmp_path / "summary.json") == summary
    stage, call = operator.call()
    assert (stage, call["engine"], call["languages"]) == ("validate_data", "spark", "en")
    spec = operator.application()["spec"]
    assert (spec["image"], spec["executor"]["instances"]) == ("registry/spark:1", 3)
    assert spec["driver"]["serviceAccount"] == "aic-gpt-spark"
    assert {"name": "workspace", "mountPath": "/workspace"} in spec["executor"]["volumeMounts"]
    told(f"SparkApplication kubeflow/{operator.name} is complete")


def test_names_with_odd_characters_reach_the_application_as_they_are_and_spell_no_secret(
    validate, operator, meanwhile, monkeypatch
):
    name = "a $(AWS_SECRET_ACCESS_KEY) $$ b"
    monkeypatch.setenv("KFP_RUN_NAME", name)
    meanwhile(lambda: good_life(operator))
    validate(corpus=f"s3://bucket/{name}")
    assert operator.call()[1]["corpus"] == f"s3://bucket/{name}"
    values = {each["name"]: each.get("value") for each in operator.application()["spec"]["driver"]["env"]}
    assert started_with([values["KFP_RUN_NAME"]]) == [name]


def test_tokens_come_home_and_what_only_this_pod_sees_is_shared(workspace, operator, meanwhile, tmp_path):
    places = {name: tmp_path / name for name in ("corpus", "heldout", "tokenizer")}
    for name, folder in places.items():
        folder.mkdir()
        (folder / "file").write_text(name)

    def life():
        _, call = operator.call()
        assert (Path(call["corpus"]) / "file").read_text() == "corpus"
        assert Path(call["tokenizer"]).is_relative_to(workspace)
        good_life(operator)

    meanwhile(life)
    tokenize_corpus_spark(**places, out=tmp_path / "tokens", image="registry/spark:1")
    assert (tmp_path / "tokens" / "made").is_file()


def test_an_application_that_fails_says_why_in_one_line(validate, operator, meanwhile):
    def life():
        operator.run()
        operator.fail("driver container failed", "error: 3 of 4 documents are bad")

    meanwhile(life)
    with pytest.raises(InputError) as caught:
        validate()
    assert "3 of 4 documents are bad" in str(caught.value)
    assert "driver container failed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_that_is_deleted_under_us_is_told(validate, operator, meanwhile, told):
    def life():
        operator.run()
        told("runs on node node-1")
        operator.api.delete(KIND, operator.name)

    meanwhile(life)
    with pytest.raises(InputError, match=r"was deleted while it ran, not by this stage; run the stage again$"):
        validate()


def test_a_stage_that_is_asked_to_stop_deletes_its_application(validate, operator, meanwhile, told):
    def life():
        operator.run()
        told("runs on node node-1")
        os.kill(os.getpid(), signal.SIGTERM)

    meanwhile(life)
    with pytest.raises(SystemExit):
        validate()
    assert not operator.api.all(KIND)


def test_a_stage_that_starts_again_fetches_what_its_application_made(validate, operator, meanwhile):
    meanwhile(lambda: good_life(operator))
    validate()
    assert validate().results == {"documents": 3}
    assert operator.api.count("create", "sparkapplications") == 1


def test_an_answer_that_is_lost_makes_no_second_application(validate, operator, meanwhile):
    operator.api.fail(Lost(), when=lambda request: request.verb == "create")
    meanwhile(lambda: good_life(operator))
    validate()
    assert len(operator.api.all(KIND)) == 1


def test_a_number_of_executors_that_makes_no_sense_is_told(validate, operator):
    with pytest.raises(InputError, match="executors is 0; give 1 or more"):
        validate(executors=0)
