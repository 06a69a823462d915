"""The command of a TrainJob run for real, by torchrun as Kubeflow Trainer has it, on two nodes of one process each."""

import json

import pytest
import yaml
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from modelcore.errors import InputError
from modelcore.stages.finetune_lora import finetune_lora
from modelcore.stages.finetune_lora_distributed import finetune_lora_distributed
from modelcore.stages.pretrain import pretrain
from modelcore.stages.pretrain_distributed import pretrain_distributed
from modelcore.tokenizers.training import train_sentencepiece
from tests.modelcore.stages.conftest import tokens as token_folder  # noqa: F401 (a fixture)
from tests.servers.ports import free_ports

RECIPE = {
    "model": "llama-nano",
    "overrides": {"n_layers": 2, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "d_ff": 32},
    # In fp32, for sums over two processes are compared closely with those of one.
    "training": {
        "steps": 4,
        "batch_size": 4,
        "sequence_length": 16,
        "learning_rate": 0.01,
        "log_every": 1,
        "precision": "fp32",
    },
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def test_two_nodes_train_the_model_of_one_process_and_log_into_the_run_that_they_were_given(
    workspace,
    trainer,
    meanwhile,
    token_folder,  # noqa: F811
    recipe,
    tmp_path,
    capfd,
    monkeypatch,
):
    one = pretrain(tokens=token_folder, out=tmp_path / "one", preset=recipe)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client = MlflowClient(store)
    run = client.create_run(client.create_experiment("e", str(tmp_path / "artifacts"))).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    (port,) = free_ports(1)
    meanwhile(lambda: trainer.run_for_real(port, tmp_path))
    summary = tmp_path / "summary.json"
    two = pretrain_distributed(tokens=token_folder, out=tmp_path / "two", preset=recipe, nodes=2, summary=summary)

    assert two.results["loss"] == pytest.approx(one.results["loss"], abs=1e-5)
    before, after = load_file(tmp_path / "one" / "model.safetensors"), load_file(tmp_path / "two" / "model.safetensors")
    assert all((before[name] - after[name]).abs().max() < 1e-4 for name in before)
    assert json.loads(summary.read_text())["stage"] == "pretrain"
    assert [point.step for point in client.get_metric_history(run, "loss")][:4] == [1, 2, 3, 4]
    shown = capfd.readouterr().err
    assert shown.count("stage=pretrain status=done") == 2  # the first, on one process, and rank 0 of the second
    assert not (workspace / "jobs" / trainer.name / "inputs").exists()


@pytest.mark.slow
def test_two_nodes_tune_the_adapter_of_one_process(workspace, trainer, meanwhile, tmp_path):
    pairs = [{"prompt": f"What is {n} and {n}?", "response": f"It is {2 * n}."} for n in range(21)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    base = tmp_path / "base"
    make_base(base, [text for pair in pairs for text in pair.values()])
    lora = {"checkpoint": base, "instructions": tmp_path / "pairs.jsonl", "rank": 2, "alpha": 4.0, "quantize": "none"}
    lora |= {"steps": 3, "learning_rate": 1e-2}
    one = finetune_lora(out=tmp_path / "one", **lora)
    (port,) = free_ports(1)
    meanwhile(lambda: trainer.run_for_real(port, tmp_path))
    two = finetune_lora_distributed(out=tmp_path / "two", nodes=2, **lora)
    # two steps an epoch, of which the second has conversations for one of them alone
    assert two.results["final_loss"] == pytest.approx(one.results["final_loss"], abs=1e-5)
    after = "heldout_reply_loss_after"
    assert two.results[after] == pytest.approx(one.results[after], abs=1e-4)
    assert (tmp_path / "two" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_job_whose_processes_are_asked_for_nonsense_says_what_they_say(
    workspace,
    trainer,
    meanwhile,
    token_folder,  # noqa: F811
    recipe,
    tmp_path,
):
    (port,) = free_ports(1)
    meanwhile(lambda: trainer.run_for_real(port, tmp_path))
    with pytest.raises(InputError, match=r"failed: pod .*-node-0-0-.* exit code 1: batch_size=3 must be a multiple"):
        pretrain_distributed(tokens=token_folder, out=tmp_path / "out", preset=recipe, batch_size=3, nodes=2)


def make_base(folder, texts):
    """A tiny untrained model with a real tokenizer."""
    import torch

    from modelcore.gptx import GPT, GPTConfig
    from modelcore.models import save_model

    scratch = folder.with_name("scratch")
    scratch.mkdir()
    train_sentencepiece(texts * 3, scratch, vocab_size=290, algorithm="bpe", seed=0)
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=290, context_length=64, n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, d_ff=32)
    folder.mkdir()
    save_model(folder, GPT(config), scratch / "tokenizer.model")
