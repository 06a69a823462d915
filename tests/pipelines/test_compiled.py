"""The committed YAML is what the code compiles to, and holds no secret and no machine's path."""

import inspect
import re

import yaml
from kfp import components

from pipelines.compile import COMPILED, compile_pipeline
from pipelines.gpt import gpt_pipeline


def spec():
    return yaml.safe_load(COMPILED.read_text(encoding="utf-8").split("\n---\n")[0])


def test_the_committed_yaml_is_the_codes():
    assert COMPILED.read_text(encoding="utf-8") == compile_pipeline(), "run: make compile"


def test_kfp_loads_it_and_offers_every_parameter_with_its_default():
    pipeline = components.load_component_from_file(str(COMPILED))
    offered = {key: value.default for key, value in pipeline.component_spec.inputs.items()}
    wanted = {key: value.default for key, value in inspect.signature(gpt_pipeline.pipeline_func).parameters.items()}
    assert offered == wanted


def test_every_parameter_is_described_for_the_ui():
    described = spec()["root"]["inputDefinitions"]["parameters"]
    assert all(parameter.get("description") for parameter in described.values())


def test_every_task_runs_on_a_pinned_image_and_leaves_kfps_cache_alone():
    for task in spec()["root"]["dag"]["tasks"].values():
        assert not task.get("cachingOptions", {}).get("enableCache")
    for executor in spec()["deploymentSpec"]["executors"].values():
        assert re.search(r":\d+\.\d+\.\d+$", executor["container"]["image"])


def test_it_fits_into_a_workflow_and_names_no_secret_and_no_home():
    text = COMPILED.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r"password|secret|AKIA[0-9A-Z]{16}|/home/|/root/", text, re.IGNORECASE)
