"""A stage that is run by a TrainJob, on a cluster that is a stand-in: what it asks for, what it tells, how it ends."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from modelcore.errors import InputError
from modelcore.stages import finetune_lora_distributed
from modelcore.stages.stage import StageSummary
from tests.servers.kubernetes_api import Answer, Lost


def test_it_makes_a_job_follows_it_and_brings_home_what_it_made(train, trainer, meanwhile, tmp_path, capfd, told):
    def life():
        trainer.make_pods(2)
        trainer.run_pods(2)
        told("runs on node gpu-0")
        trainer.log("stage=pretrain status=started", "pretrain step=1/2 loss=3.0")
        trainer.log("not rank 0", index=1)
        trainer.end_pod(1)
        trainer.complete(loss=1.5)

    meanwhile(life)
    summary = train(nodes=2, processes_per_node=4)
    assert (summary.stage, summary.results) == ("pretrain", {"loss": 1.5})
    assert StageSummary.load(tmp_path / "summary") == summary
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
    shown = capfd.readouterr().err
    assert "stage=pretrain status=started\npretrain step=1/2 loss=3.0\n" in shown
    assert "not rank 0" not in shown
    told(f"TrainJob kubeflow/{trainer.name} created: runtime aic-gpt-torch, 2 nodes of 4 processes")
    assert trainer.api.find("TrainJob", trainer.name), "the job stays for whoever wants to look at it"


def test_the_job_is_what_was_asked_for(train, trainer, meanwhile, monkeypatch, workspace, tokens):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    meanwhile(lambda: trainer.live_well())
    train(nodes=3, processes_per_node=8, parallel="fsdp", shard_size=8, seed=5)
    job = trainer.job()
    spec = job["spec"]["trainer"]
    assert (spec["numNodes"], spec["numProcPerNode"]) == (3, 8)
    assert spec["resourcesPerNode"]["limits"] == {"memory": str(8 * 64 * 2**30), "nvidia.com/gpu": "8"}
    assert spec["resourcesPerNode"]["requests"]["cpu"] == "64"
    assert spec["command"][:3] == ["torchrun", "-m", "modelcore.cluster.job_process"]
    stage, arguments = trainer.words()
    assert stage == "pretrain"
    assert {"parallel": "fsdp", "shard_size": 8, "tensor_parallel": 0, "seed": 5}.items() <= arguments.items()
    assert arguments["tokens"].startswith(str(workspace))
    # the run of MLflow goes with the job, the password does not
    environment = {each["name"]: each["value"] for each in spec["env"]}
    assert environment == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_RUN_ID": "abc",
        "KFP_RUN_ID": "0f8c2a6e-run",
    }
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "ClusterTrainingRuntime",
        "name": "aic-gpt-torch",
    }
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "aic-gpt"
    assert labels["pipeline/runid"] == "0f8c2a6e-run"


def test_the_job_goes_with_the_workflow_and_not_with_the_pod(train, trainer, meanwhile):
    meanwhile(lambda: trainer.live_well())
    train()
    (owner,) = trainer.job()["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Workflow", "run-x")
    trainer.api.delete("Pod", "run-x-pretrain-1")
    assert trainer.api.all("TrainJob")
    trainer.api.delete("Workflow", "run-x")
    assert not trainer.api.all("TrainJob")


def test_what_the_job_reads_is_copied_for_it_once_and_removed_when_it_is_done(train, trainer, meanwhile):
    seen = []

    def life():
        _, arguments = trainer.words()
        seen.append(Path(arguments["tokens"]) / "shard")
        assert seen[0].read_text() == "tokens"
        trainer.live_well()

    meanwhile(life)
    train()
    assert not seen[0].exists()


def test_what_the_job_can_read_where_it_is_is_not_copied(train, trainer, meanwhile, workspace):
    (workspace / "tokens").mkdir()
    meanwhile(lambda: trainer.live_well())
    train(tokens=workspace / "tokens")
    assert trainer.words()[1]["tokens"] == str(workspace / "tokens")
    assert (workspace / "tokens").is_dir()


def test_instructions_are_shared_and_addresses_of_object_storage_are_passed_on(trainer, meanwhile, workspace, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    meanwhile(lambda: trainer.live_well())
    finetune_lora_distributed.finetune_lora_distributed(
        checkpoint=tmp_path / "checkpoint",
        instructions="s3://bucket/pairs.jsonl",
        out=tmp_path / "adapter",
        rank=4,
        alpha=8.0,
        quantize="nf4",
        steps=3,
        learning_rate=1e-3,
    )
    stage, arguments = trainer.words()
    assert stage == "finetune_lora"
    assert arguments["instructions"] == "s3://bucket/pairs.jsonl"
    assert arguments["checkpoint"].startswith(str(workspace))


def test_what_a_job_waits_for_is_told_and_no_time_out_ends_it(train, trainer, meanwhile, said, told):
    def life():
        name = trainer.name
        trainer.api.change("TrainJob", name, lambda job: job["spec"].update(suspend=True))
        told(f"waiting for Kueue's queue aic-gpt to admit it: TrainJob kubeflow/{name} is suspended")
        trainer.event("Workload", f"trainjob-{name}-12345", "Pending", "insufficient quota for GPUs", "Normal")
        told("insufficient quota for GPUs")
        trainer.api.change("TrainJob", name, lambda job: job["spec"].update(suspend=False))
        told("is not suspended any more")
        trainer.make_pods()
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes fit"}
        trainer.api.change("Pod", trainer.pod(), lambda pod: pod["status"].update(conditions=[unscheduled]))
        told(f"waiting for pod {trainer.pod()}: Unschedulable: 0/3 nodes fit")
        trainer.event("Pod", "somebody-elses", "BackOff", "not ours")
        trainer.event("Pod", trainer.pod(), "FailedScheduling", "0/3 nodes are available")
        told(f"Pod {trainer.pod()}: FailedScheduling: 0/3 nodes are available")
        trainer.wait_with("ImagePullBackOff", 'Back-off pulling image "x"')
        told(f'waiting for pod {trainer.pod()}: ImagePullBackOff: Back-off pulling image "x"')
        trainer.run_pods()
        trainer.complete()

    meanwhile(life)
    train()
    assert not any("not ours" in line for line in said())


def test_a_job_that_fails_says_which_pod_how_and_its_last_words(train, trainer, meanwhile):
    def life():
        trainer.make_pods(2)
        trainer.run_pods(2)
        trainer.log("one", "two", "RuntimeError: CUDA error", "the end", index=1)
        trainer.end_pod(1, code=137, reason="OOMKilled")
        trainer.end_pod(0, code=1)
        trainer.say("Failed", reason="FailedJobs", message="jobset failed")

    meanwhile(life)
    with pytest.raises(InputError) as error:
        train(nodes=2)
    text = str(error.value)
    assert "\n" not in text
    assert f"TrainJob kubeflow/{trainer.name} failed: pod " in text
    assert "jobset failed" in text
    # of those that failed before the job was seen to fail, the first one
    assert (
        f"pod {trainer.pod(1)} ended with exit code 137 (OOMKilled): two | RuntimeError: CUDA error | the end" in text
    )


def test_what_a_process_left_as_its_last_word_is_told_before_its_log(train, trainer, meanwhile):
    def life():
        trainer.make_pods()
        trainer.run_pods()
        trainer.log("torchrun's own noise")
        trainer.end_pod(code=1, message="steps is -1; give 1 or more")
        trainer.say("Failed")

    meanwhile(life)
    with pytest.raises(InputError, match=r"exit code 1: steps is -1; give 1 or more$"):
        train()


def test_a_job_that_fails_without_a_pod_says_what_its_condition_says(train, trainer, meanwhile):
    meanwhile(lambda: trainer.say("Failed", reason="TrainJobResourcesCreationFailed", message="bad runtime"))
    with pytest.raises(InputError, match="failed: TrainJobResourcesCreationFailed bad runtime"):
        train()


def test_a_job_whose_pods_are_made_anew_is_followed_on(train, trainer, meanwhile, capfd, said, told):
    def life():
        trainer.make_pods()
        trainer.run_pods()
        trainer.log("first life")
        trainer.api.wait_for(lambda: trainer.api.count("get", "pods", "log"))
        trainer.end_pod(code=1, message="a lost node")
        told("a lost node")
        trainer.restart()
        trainer.run_pods()
        trainer.log("second life")
        trainer.complete(loss=2.0)

    meanwhile(life)
    assert train().results == {"loss": 2.0}
    assert "first life\nsecond life\n" in "".join(
        line + "\n" for line in capfd.readouterr().err.splitlines() if "life" in line
    )
    assert "the job's pods are started anew, attempt 2" in said()


def test_a_job_that_somebody_deletes_ends_the_stage_with_one_line(train, trainer, meanwhile):
    def life():
        trainer.make_pods()
        trainer.api.delete("TrainJob", trainer.name)

    meanwhile(life)
    with pytest.raises(InputError, match="was deleted while it ran, not by this stage"):
        train()


def test_a_stage_that_is_asked_to_stop_deletes_its_job(train, trainer, meanwhile, capfd):
    def life():
        trainer.make_pods()
        trainer.run_pods()
        os.kill(os.getpid(), signal.SIGTERM)

    meanwhile(life)
    with pytest.raises(SystemExit) as stopped:
        train()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not trainer.api.all("TrainJob")
    assert not [pod for pod in trainer.api.all("Pod") if "node" in pod["metadata"]["name"]]
    assert "is deleted, its checkpoints stay" in capfd.readouterr().err


def test_a_stage_that_cannot_delete_its_job_says_how_to(train, trainer, meanwhile, capfd):
    def life():
        trainer.api.rules = [
            rule | {"verbs": [v for v in rule["verbs"] if v != "delete"]} for rule in trainer.api.rules
        ]
        trainer.make_pods()
        os.kill(os.getpid(), signal.SIGTERM)

    meanwhile(life)
    with pytest.raises(SystemExit):
        train()
    assert f"kubectl --namespace kubeflow delete trainjob {trainer.name}" in capfd.readouterr().err


def test_a_stage_that_starts_again_follows_the_job_that_it_had_made(train, trainer, meanwhile, told, monkeypatch):
    """The first attempt's process is gone without a word; here it is left by an error of its own."""

    def die(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("modelcore.cluster.job_stage.Follower.follow", die)
        with pytest.raises(ZeroDivisionError):
            train()

    def life():
        told(f"TrainJob {trainer.name}, made by an earlier attempt, is under way; it is followed")
        trainer.live_well()

    meanwhile(life)
    assert train().results == {"loss": 1.5}
    assert trainer.api.count("create", "trainjobs") == 1


def test_a_stage_that_starts_again_when_its_job_is_done_fetches_what_it_made(train, trainer, meanwhile):
    meanwhile(lambda: trainer.live_well())
    first = train()
    assert train() == first
    assert trainer.api.count("create", "trainjobs") == 1


def test_a_stage_that_is_asked_to_stop_while_it_fetches_leaves_the_job_to_the_next_attempt(
    train, trainer, meanwhile, monkeypatch
):
    def stop_instead(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)

    meanwhile(lambda: trainer.live_well())
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(shutil, "copytree", stop_instead)
        train()
    assert train().results == {"loss": 1.5}
    assert trainer.api.count("create", "trainjobs") == 1


def test_a_job_that_failed_is_made_anew_by_the_next_attempt(train, trainer, meanwhile):
    meanwhile(lambda: trainer.say("Failed", reason="R", message="m"))
    with pytest.raises(InputError):
        train()
    failed = trainer.job()["metadata"]["uid"]

    def life():
        trainer.api.wait_for(lambda: [j for j in trainer.api.all("TrainJob") if j["metadata"]["uid"] != failed])
        trainer.live_well()

    meanwhile(life)
    assert train().results == {"loss": 1.5}


def test_other_arguments_of_the_same_run_are_another_job(train, trainer, meanwhile, tmp_path):
    meanwhile(lambda: trainer.live_well())
    train()
    first = trainer.name

    def life():
        trainer.api.wait_for(lambda: len(trainer.api.all("TrainJob")) == 2)
        trainer.api.delete("TrainJob", first)
        trainer.live_well()

    meanwhile(life)
    train(learning_rate=0.5)
    assert trainer.name != first


def test_a_bad_day_of_the_network_ends_nothing(train, trainer, meanwhile, capfd):
    """Watches that are cut, versions that are forgotten, a server that is away: each line of the log comes once."""

    def life():
        api = trainer.api
        trainer.make_pods()
        trainer.run_pods()
        trainer.log("line 1")
        api.wait_for(lambda: api.count("get", "pods", "log") and api.count("watch", "trainjobs"))
        logs, watches = api.count("get", "pods", "log"), api.count("watch", "trainjobs")
        api.cut()
        trainer.log("line 2")
        api.wait_for(lambda: api.count("get", "pods", "log") > logs and api.count("watch", "trainjobs") > watches)
        lists = api.count("list", "trainjobs")
        api.expire()
        api.wait_for(lambda: api.count("list", "trainjobs") > lists)
        api.down = True
        api.cut()
        trainer.log("line 3")
        api.down = False
        watches = api.count("watch", "trainjobs")
        api.fail(*[Answer(503, "ServiceUnavailable")] * 3, when=lambda request: request.verb in ("list", "watch"))
        api.cut()
        api.wait_for(lambda: api.count("watch", "trainjobs") > watches and not api.pending)
        trainer.log("line 4")
        trainer.complete(loss=1.0)

    meanwhile(life)
    assert train().results == {"loss": 1.0}
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("line ")]
    assert lines == ["line 1", "line 2", "line 3", "line 4"]


def test_an_answer_that_is_lost_makes_no_second_job(train, trainer, meanwhile):
    trainer.api.fail(Lost(), when=lambda request: request.verb == "create")
    meanwhile(lambda: trainer.live_well())
    train()
    assert trainer.api.count("create", "trainjobs") == 2
    assert len(trainer.api.all("TrainJob")) == 1


@pytest.mark.parametrize(
    ("resource", "told"),
    [
        ("trainjobs", "the cluster refuses to get TrainJob .*: trainjobs.trainer.kubeflow.org .* cannot get resource"),
        ("clustertrainingruntimes", "the cluster refuses to get ClusterTrainingRuntime aic-gpt-torch"),
        ("pods", 'the cluster refuses to get pod run-x-pretrain-1: .* cannot get resource "pods"'),
    ],
)
def test_what_it_may_not_do_is_told_in_one_line(train, api, resource, told):
    api.rules = [rule for rule in api.rules if resource not in rule["resources"]]
    with pytest.raises(InputError, match=told):
        train()


def test_without_the_right_to_read_logs_and_events_it_follows_in_silence(train, trainer, meanwhile, told):
    for rule in trainer.api.rules:
        rule["resources"] = [name for name in rule["resources"] if name not in ("events", "pods/log")]

    def life():
        trainer.make_pods()
        trainer.run_pods()
        told("progress goes unsaid")
        told("what delays the job may go unsaid")
        trainer.complete(loss=1.0)

    meanwhile(life)
    assert train().results == {"loss": 1.0}


def test_an_unknown_runtime_is_told_with_what_would_be_right(train, api):
    with pytest.raises(InputError, match="there is no training runtime 'other', neither in namespace kubeflow nor"):
        train(runtime="other")


@pytest.mark.parametrize(("name", "value"), [("nodes", 0), ("processes_per_node", -1)])
def test_numbers_that_make_no_sense_are_told(train, api, name, value):
    with pytest.raises(InputError, match=f"{name} is {value}; give 1 or more"):
        train(**{name: value})


def test_without_a_cluster_or_a_workspace_it_says_what_is_missing(train, api, monkeypatch, tmp_path):
    monkeypatch.setenv("MODELCORE_WORKSPACE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="mount the claim aic-gpt-workspace"):
        train()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(InputError, match="there is no Kubernetes cluster to run a job in"):
        train()


def test_a_job_that_wrote_to_another_claim_is_told(train, trainer, meanwhile):
    meanwhile(lambda: trainer.say("Complete"))
    with pytest.raises(InputError, match="do its pods mount the same claim as this stage"):
        train()
