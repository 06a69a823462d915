"""The enterprise profile, as its compiled YAML says it: what a pod of each stage asks a cluster for."""

import re

import pytest
import yaml
from kfp import components

from components.images import IMAGES, SPARK_IMAGE
from modelcore.storage import VARIABLES as STORAGE_VARIABLES
from pipelines import enterprise_values
from pipelines.compile import COMPILED, FOLDER, PIPELINES
from pipelines.enterprise import ENTERPRISE, GPU_TAINT
from pipelines.profile import STORAGE_SECRET
from pipelines.run_folder import STAGES

FILE = FOLDER / "gpt-pipeline-enterprise.yaml"
TEXT = FILE.read_text(encoding="utf-8")
SPEC, PLATFORM = yaml.safe_load_all(TEXT)
TASKS = SPEC["root"]["dag"]["tasks"]
GPU_STAGES = ["evaluate"]  # pretraining and tuning have theirs in jobs of their own


def executor_of(stage):
    """A stage's container, and what else is said of its pod."""
    label = SPEC["components"][TASKS[task_of(stage)]["componentRef"]["name"]]["executorLabel"]
    platform = PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return SPEC["deploymentSpec"]["executors"][label]["container"], platform.get(label, {})


def task_of(stage):
    substitute = ENTERPRISE.substitutes.get(stage)
    name = substitute.component.python_func.__name__ if substitute else stage
    return name.replace("_", "-")


def test_it_is_the_same_pipeline_a_stage_for_a_stage():
    free_tier, _ = yaml.safe_load_all(COMPILED.read_text(encoding="utf-8"))
    assert sorted(TASKS) == sorted(task_of(stage) for stage in STAGES)
    mine, theirs = SPEC["root"]["inputDefinitions"]["parameters"], free_tier["root"]["inputDefinitions"]["parameters"]
    other = {name for name in theirs if mine[name] != theirs[name]}
    assert other == {"corpus", "heldout", "instructions"}
    assert mine.keys() - theirs.keys() == {setting.name for setting in ENTERPRISE.settings}


def test_what_no_image_holds_has_to_be_given_and_heldout_text_is_split_off_where_it_is_not():
    inputs = components.load_component_from_text(TEXT).component_spec.inputs
    assert {name for name, spec in inputs.items() if not spec.optional} == {"corpus", "instructions"}
    assert inputs["heldout"].default == ""


def test_every_parameter_has_a_description():
    assert all(parameter.get("description") for parameter in SPEC["root"]["inputDefinitions"]["parameters"].values())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_bounded_and_is_given_what_it_asks_for(stage):
    resources = executor_of(stage)[0]["resources"]
    for kind in ("Cpu", "Memory"):
        assert bytes_of(resources[f"resource{kind}Request"]) <= bytes_of(resources[f"resource{kind}Limit"])


def bytes_of(quantity):
    number, unit = re.fullmatch(r"(\d+)(m|Mi|Gi|)", quantity).groups()
    return int(number) * {"m": 1e-3, "": 1, "Mi": 2**20, "Gi": 2**30}[unit]


@pytest.mark.parametrize("stage", GPU_STAGES)
def test_a_stage_with_a_gpu_goes_to_a_node_that_has_one_through_the_queue_with_its_priority(stage):
    container, pod = executor_of(stage)
    accelerator = container["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
    assert pod["nodeSelector"]["labels"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["podMetadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "aic-gpt",
        "kueue.x-k8s.io/priority-class": "aic-gpt-training",
    }


@pytest.mark.parametrize("stage", GPU_STAGES)
def test_its_shared_memory_is_in_memory_and_fits_into_the_pods_limit(stage):
    container, pod = executor_of(stage)
    (mount,) = pod["emptyDirMounts"]
    assert (mount["mountPath"], mount["medium"]) == ("/dev/shm", "Memory")
    assert bytes_of(mount["sizeLimit"]) < bytes_of(container["resources"]["resourceMemoryLimit"])


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in GPU_STAGES])
def test_a_stage_without_a_gpu_takes_none_and_holds_no_place_in_the_queue_that_its_own_job_waits_in(stage):
    container, pod = executor_of(stage)
    assert "accelerator" not in container["resources"]
    assert not {"nodeSelector", "tolerations", "podMetadata"} & pod.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_failed_is_begun_again_after_a_pause(stage):
    policy = TASKS[task_of(stage)]["retryPolicy"]
    assert policy["maxRetryCount"] >= 1
    assert policy["backoffDuration"] == "60s"


def test_text_is_prepared_by_spark_as_the_runs_own_parameters_say():
    parameters = SPEC["root"]["inputDefinitions"]["parameters"]
    asked = {
        "validate-data-spark": {"languages": "", "quality": "none", "near_duplicates": 0.0},
        "tokenize-corpus-spark": {},
    }
    for task, filters in asked.items():
        inputs = TASKS[task]["inputs"]["parameters"]
        own = {name: name for name in filters} | {"executors": "executors", "image": "spark_image"}
        assert {name: inputs[name] for name in own} == {
            name: {"componentInputParameter": setting} for name, setting in own.items()
        }
        assert {name: parameters[name]["defaultValue"] for name in filters} == filters
    assert parameters["spark_image"]["defaultValue"] == f"{enterprise_values.read()['IMAGE_REGISTRY']}/{SPARK_IMAGE}"
    assert parameters["executors"]["defaultValue"] == 2


ENTERPRISE_FILES = sorted(FOLDER.glob("*-enterprise.yaml"))
UNLIMITED = {
    *("validate-data-spark", "train-tokenizer", "tokenize-corpus-spark", "pretrain-distributed", "pretrain-trial"),
    *("finetune-lora-distributed", "evaluate", "check-drift"),
}


@pytest.mark.parametrize("file", ENTERPRISE_FILES, ids=lambda file: file.stem)
def test_what_a_stage_of_a_fixed_size_may_take_is_limited_and_nothing_ends_one_that_takes_long(file):
    spec, platform = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    limits = {
        name.removeprefix("exec-"): int(pods.get(name, {}).get("activeDeadlineSeconds", 0))
        for name in spec["deploymentSpec"]["executors"]
    }
    assert limits["write-report"] == 3600
    for stage, limit in limits.items():
        assert (limit == 0) == (stage in UNLIMITED), stage
        assert limit == 0 or limit >= 3600


def test_the_workspace_is_mounted_where_stages_and_jobs_meet():
    for stage in ("validate_data", "tokenize_corpus", "pretrain", "finetune_lora", "evaluate"):
        (claim,) = executor_of(stage)[1]["pvcMount"]
        assert (claim["constant"], claim["mountPath"]) == ("aic-gpt-workspace", "/workspace"), stage


def test_secrets_are_named_and_no_value_of_one_is_there():
    for executor in PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        for secret in executor.get("secretAsEnv", []):
            assert secret["secretName"] == STORAGE_SECRET
            assert [entry["envVar"] for entry in secret["keyToEnv"]] == list(STORAGE_VARIABLES)
            assert [entry["secretKey"] for entry in secret["keyToEnv"]] == list(STORAGE_VARIABLES)
    environment = [
        variable
        for executor in SPEC["deploymentSpec"]["executors"].values()
        for variable in executor["container"].get("env", [])
    ]
    assert {variable["name"] for variable in environment} <= {"MODELCORE_CACHE"}
    assert not re.search(r"AKIA[0-9A-Z]{16}|password|BEGIN [A-Z ]*PRIVATE KEY", TEXT)


def test_every_image_is_pinned_and_the_whole_fits_into_a_workflow():
    for executor in SPEC["deploymentSpec"]["executors"].values():
        assert re.search(r":\d+\.\d+\.\d+$", executor["container"]["image"])
        assert "pip install" not in str(executor)
    assert len(TEXT) < 200_000


@pytest.mark.parametrize("name", [name for name in PIPELINES if name.endswith("-enterprise")])
def test_every_image_comes_from_the_registry_that_the_manifests_name(name):
    registry = enterprise_values.read()["IMAGE_REGISTRY"]
    spec = next(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text("utf-8")))
    images = {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()}
    assert images
    assert images <= {f"{registry}/{image.name}" for image in IMAGES}
