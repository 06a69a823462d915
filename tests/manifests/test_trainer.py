"""Training in jobs: the runtime is what its schema allows, closed as far as it goes, and speaks of ours by name."""

import pytest
import yaml

import modelcore
from components.images import MODEL_IMAGE
from modelcore.storage import VARIABLES as STORAGE_VARIABLES
from pipelines.profile import STORAGE_SECRET
from tests.servers.kubernetes_schemas import faults


@pytest.fixture(scope="module")
def trainer(enterprise):
    kinds = {"ClusterTrainingRuntime", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    return {item["kind"]: item for item in enterprise if item["kind"] in kinds and _ours(item)}


def _ours(item):
    return item["metadata"]["name"] in (
        "aic-gpt-torch",
        "pipeline-runner-train-jobs",
        "pipeline-runner-training-runtimes",
    )


@pytest.fixture(scope="module")
def pod(trainer):
    (job,) = trainer["ClusterTrainingRuntime"]["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_an_api_server_takes_the_runtime(trainer):
    assert list(faults(trainer["ClusterTrainingRuntime"])) == []


def test_the_runtime_is_the_one_that_components_name_and_runs_our_model_image(trainer, pod):
    (container,) = pod["containers"]
    assert container["image"].rpartition("/")[2] == MODEL_IMAGE
    assert container["image"].endswith(f":{modelcore.__version__}")
    assert trainer["ClusterTrainingRuntime"]["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch"


def test_training_pods_are_restricted_and_have_no_token(pod):
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    closed = container["securityContext"]
    assert closed["capabilities"] == {"drop": ["ALL"]}
    assert (closed["allowPrivilegeEscalation"], closed["readOnlyRootFilesystem"]) == (False, True)


def test_a_process_has_a_gpu_shared_memory_and_the_workspace_where_components_look_for_it(pod):
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert volumes[mounts["/workspace"]]["persistentVolumeClaim"]["claimName"] == "aic-gpt-workspace"


def test_secrets_are_named_and_none_is_written_down(pod):
    (container,) = pod["containers"]
    secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}
    assert {name: secrets[name]["name"] for name in STORAGE_VARIABLES} == dict.fromkeys(
        STORAGE_VARIABLES, STORAGE_SECRET
    )
    assert secrets["MLFLOW_TRACKING_PASSWORD"]["name"] == "kfp-mlflow-credentials"
    assert all(secret["optional"] for secret in secrets.values())


def test_a_job_that_was_restarted_too_often_has_failed_and_nothing_else_ends_it(trainer, pod):
    spec = trainer["ClusterTrainingRuntime"]["spec"]["template"]["spec"]
    assert spec["failurePolicy"] == {"maxRestarts": 3}
    assert "activeDeadlineSeconds" not in yaml.safe_dump(trainer["ClusterTrainingRuntime"])
    assert pod["restartPolicy"] == "Never"


def test_the_pipelines_pods_may_handle_train_jobs_and_touch_no_secret(trainer):
    rules = trainer["Role"]["rules"] + trainer["ClusterRole"]["rules"]
    verbs = {resource: set(rule["verbs"]) for rule in rules for resource in rule["resources"]}
    assert verbs["trainjobs"] == {"create", "get", "list", "watch", "delete"}
    assert verbs["pods/log"] == verbs["clustertrainingruntimes"] == {"get"}
    assert not {"secrets", "configmaps", "pods/exec"} & verbs.keys()
    assert not any("*" in rule["verbs"] + rule["resources"] + rule["apiGroups"] for rule in rules)
    for binding in ("RoleBinding", "ClusterRoleBinding"):
        subject = {"kind": "ServiceAccount", "name": "pipeline-runner", "namespace": "kubeflow"}
        assert trainer[binding]["subjects"] == [subject]
