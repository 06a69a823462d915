"""The committed YAML is what the code compiles to, and holds no secret and no machine's path."""

import ast
import inspect
import re

import pytest
import yaml
from kfp import components

from modelcore.storage import VARIABLES as STORAGE_VARIABLES
from pipelines.compile import COMPILED, FOLDER, PIPELINES, compile_pipeline
from pipelines.gpt import gpt_pipeline
from pipelines.profile import STORAGE_SECRET


def spec():
    return yaml.safe_load(COMPILED.read_text(encoding="utf-8").split("\n---\n")[0])


@pytest.mark.parametrize("name", PIPELINES)
def test_the_committed_yaml_is_the_codes(name):
    file = FOLDER / f"{name}.yaml"
    assert file.read_text(encoding="utf-8") == compile_pipeline(PIPELINES[name]), "run: make compile"


def test_no_compiled_pipeline_is_left_whose_code_is_gone():
    assert sorted(file.stem for file in FOLDER.iterdir()) == sorted(PIPELINES)


def test_every_stage_asks_for_memory_and_a_node_of_two_cores_and_a_gibibyte_to_spare_holds_it():
    for name, executor in spec()["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        assert resources["resourceMemoryRequest"].endswith("Mi"), name
        assert int(resources["resourceMemoryRequest"].removesuffix("Mi")) <= 1024
        assert int(resources["resourceCpuRequest"].removesuffix("m")) <= 500
        assert not {"resourceMemoryLimit", "resourceCpuLimit", "accelerator"} & resources.keys()


def test_kfp_loads_it_and_offers_every_parameter_with_its_default():
    pipeline = components.load_component_from_file(str(COMPILED))
    offered = {key: value.default for key, value in pipeline.component_spec.inputs.items()}
    wanted = {key: value.default for key, value in inspect.signature(gpt_pipeline.pipeline_func).parameters.items()}
    assert offered == wanted


def test_every_parameter_is_described_for_the_ui():
    described = spec()["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in described.values())


def dags(spec):
    """The graphs of a pipeline: its own, and those of its branches and loops."""
    return [spec["root"], *(component for component in spec["components"].values() if "dag" in component)]


@pytest.mark.parametrize("name", PIPELINES)
def test_no_task_is_cached_by_kfp_whose_key_knows_no_content(name):
    spec, _ = yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    tasks = [task for graph in dags(spec) for task in graph["dag"]["tasks"].values()]
    run = [task for task in tasks if "executorLabel" in spec["components"][task["componentRef"]["name"]]]
    assert len(run) >= 9
    for task in run:
        assert not task["cachingOptions"].get("enableCache")


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_reaches_the_code_of_a_stage_and_is_used_there(name):
    spec, _ = yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    tasks = [task for graph in dags(spec) for task in graph["dag"]["tasks"].values()]
    repeated_or_decided_by = "".join(f"{task.get('parameterIterator')} {task.get('triggerPolicy')}" for task in tasks)
    for graph in dags(spec):
        handed_on = {
            given.get("componentInputParameter")
            for task in graph["dag"]["tasks"].values()
            for given in task.get("inputs", {}).get("parameters", {}).values()
        }
        for parameter in graph["inputDefinitions"]["parameters"].keys() - handed_on:
            assert f"'{parameter}'" in repeated_or_decided_by
    for component in spec["components"].values():
        if "executorLabel" not in component:
            continue
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        code = ast.parse(container["command"][-1])
        (function,) = [node for node in code.body if isinstance(node, ast.FunctionDef)]
        read = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert component["inputDefinitions"].get("parameters", {}).keys() <= read


def test_every_image_is_pinned():
    for executor in spec()["deploymentSpec"]["executors"].values():
        assert re.search(r":\d+\.\d+\.\d+$", executor["container"]["image"])


def test_it_fits_into_a_workflow_and_names_no_secret_and_no_home():
    text, platform = COMPILED.read_text(encoding="utf-8").split("\n---\n")
    assert len(text) < 200_000
    assert not re.search(r"password|secret|AKIA[0-9A-Z]{16}|/home/|/root/", text + platform_values(platform), re.I)


def platform_values(platform):
    """What the part for Kubernetes says, without the names of its fields and of environment variables."""
    return re.sub(r"\b(secretAsEnv|secretKey|secretName|secretNameParameter|AWS_[A-Z_]+)\b", "", platform)


def test_stages_that_read_or_write_object_storage_may_find_its_key_in_a_secret_that_is_named():
    platform = yaml.safe_load(COMPILED.read_text(encoding="utf-8").split("\n---\n")[1])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert sorted(executors) == ["exec-evaluate", "exec-finetune-lora", "exec-pretrain", "exec-validate-data"]
    for executor in executors.values():
        assert executor.keys() == {"secretAsEnv"}
        (secret,) = executor["secretAsEnv"]
        assert secret["secretName"] == STORAGE_SECRET
        assert secret["optional"] is True  # a cluster whose runs use no s3:// has none
        assert [entry["envVar"] for entry in secret["keyToEnv"]] == list(STORAGE_VARIABLES)


def test_defaults_are_the_stages_own():
    """One default a setting: the pipeline, the command line and the stage must not drift apart."""
    from modelcore.commands import build_parser
    from modelcore.stages.finetune_lora import finetune_lora
    from modelcore.stages.pretrain import pretrain
    from modelcore.stages.train_tokenizer import train_tokenizer
    from modelcore.stages.validate_data import validate_data

    offered = {key: value.default for key, value in inspect.signature(gpt_pipeline.pipeline_func).parameters.items()}
    lines = {
        "validate-data x --out y": (validate_data, {}),
        "train-tokenizer x --out y": (train_tokenizer, {"algorithm": "tokenizer_algorithm"}),
        "pretrain --tokens x --out y": (pretrain, {}),
        "finetune --checkpoint x --instructions y --out z": (
            finetune_lora,
            {"rank": "lora_rank", "alpha": "lora_alpha", "steps": "lora_steps", "learning_rate": "lora_learning_rate"}
            | {"quantize": "lora_quantize", "micro_batch_size": "lora_micro_batch_size", "batch_size": ""},
        ),
    }
    for line, (stage, names) in lines.items():
        typed = vars(build_parser().parse_args(line.split()))
        for key, parameter in inspect.signature(stage).parameters.items():
            if parameter.default in (inspect.Parameter.empty, None) or key == "corpus":
                continue
            if key in typed:
                assert typed[key] == parameter.default, f"command line: {line.split()[0]} {key}"
            if (name := names.get(key, key)) in offered and key != "heldout":
                assert offered[name] == parameter.default, f"pipeline: {name}"
