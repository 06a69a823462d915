"""The components that start a TrainJob, called directly: they ask for what the components of one process ask for."""

import inspect

import pytest

from components.readme import load_component
from tests.components.conftest import PARAMETERS, Artifact
from tests.modelcore.cluster.conftest import api, meanwhile, trainer, workspace  # noqa: F401 (fixtures)

JOB = {"nodes": 2, "processes_per_node": 1, "runtime": "aic-gpt-torch"}
MORE = {
    "pretrain": {"parallel": "fsdp", "shard_size": 0, "tensor_parallel": 1, **JOB},
    "finetune_lora": JOB,
}


@pytest.mark.parametrize("name", MORE)
def test_its_inputs_and_outputs_are_those_of_one_process_and_the_jobs(name):
    one, many = load_component(name).component_spec, load_component(f"{name}_distributed").component_spec
    assert many.inputs.keys() - one.inputs.keys() == MORE[name].keys()
    assert one.inputs.keys() <= many.inputs.keys()
    assert many.outputs == one.outputs


@pytest.mark.parametrize("name", MORE)
def test_called_directly_it_gives_every_argument_to_the_job(name, trainer, meanwhile, workspace, tmp_path):  # noqa: F811
    component = load_component(f"{name}_distributed")
    parameters = PARAMETERS[name] | MORE[name]
    if name == "finetune_lora":
        parameters |= {"instructions": str(workspace / "pairs.jsonl")}
        (workspace / "pairs.jsonl").touch()
    (workspace / "input").mkdir()
    artifacts = {key: Artifact(tmp_path / key) for key in component.component_spec.outputs}
    inputs = {key: Artifact(workspace / "input") for key in inspect.signature(component.python_func).parameters}
    inputs = {key: each for key, each in inputs.items() if key not in parameters | artifacts}

    def life():
        trainer.make_pods()
        trainer.run_pods()
        trainer.complete(loss=1.25)

    meanwhile(life)
    component.python_func(**inputs, **artifacts, **parameters)
    stage, asked = trainer.words()
    assert stage == name
    assert {key: asked[key] for key in parameters if key not in JOB} == {
        key: value for key, value in parameters.items() if key not in JOB
    }
    assert {asked[key] for key in inputs} == {str(workspace / "input")}
    assert artifacts["metrics"].metadata["loss"] == 1.25
    assert (tmp_path / "summary").is_file()
