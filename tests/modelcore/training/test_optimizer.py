import subprocess
import sys

import pytest
import torch

from modelcore.training.optimizer import Optimizer

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


def give_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_adamw_takes_torchs_own_steps_with_decay_on_matrices_only(make_model, make_settings):
    model, reference = make_model(), make_model()
    optimizer = Optimizer(model, make_settings(weight_decay=0.3, learning_rate=0.01))
    theirs = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim == 2], "weight_decay": 0.3},
            {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.005,
        betas=(0.9, 0.95),
        foreach=False,
        fused=False,
    )
    for step in range(3):
        give_gradients(model, step)
        give_gradients(reference, step)
        optimizer.step(0.5, ONE)
        theirs.step()
    expected = weights(reference)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_adamw_is_torchs_fused_one_bit_for_bit_also_where_steps_are_skipped(make_model, make_settings):
    model, reference = make_model(norm="layernorm", norm_bias=True), make_model(norm="layernorm", norm_bias=True)
    optimizer = Optimizer(model, make_settings(weight_decay=0.3, learning_rate=0.01))
    theirs = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim == 2], "weight_decay": 0.3},
            {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    for step, taken in enumerate((ZERO, ONE, ONE, ZERO, ONE)):
        give_gradients(model, step)
        give_gradients(reference, step)
        if step == 2:  # a parameter without a gradient is left alone
            model.norm.bias.grad = reference.norm.bias.grad = None
        optimizer.step(0.5 + step, taken)
        for group in theirs.param_groups:
            group["lr"] = 0.01 * (0.5 + step)
        theirs.found_inf = 1.0 - taken
        theirs.step()
    expected, states = dict(reference.named_parameters()), optimizer.state_tensors()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name])
        for key, value in theirs.state[expected[name]].items():
            assert torch.equal(states[f"adamw.{key}.{name}"], value)


def test_training_on_a_cpu_does_not_import_torchs_compiler():
    code = (
        "import sys, torch\n"
        "from modelcore.gptx import GPT, GPTConfig\n"
        "from modelcore.training.optimizer import Optimizer\n"
        "from modelcore.training import TrainingSettings\n"
        "model = GPT(GPTConfig(11, 8, 1, 8, 2, 1, 16))\n"
        "settings = TrainingSettings(steps=1, batch_size=1, sequence_length=8, learning_rate=0.1)\n"
        "optimizer = Optimizer(model, settings)\n"
        "model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()\n"
        "optimizer.step(1.0, torch.tensor(1.0))\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(make_model, make_settings):
    model = make_model(positions="learned", norm="layernorm", norm_bias=True, attention_bias=True, tie_embeddings=False)
    optimizer = Optimizer(model, make_settings(optimizer="muon"))
    give_gradients(model)
    optimizer.step(1.0, ONE)
    owners = {}
    for key in optimizer.state_tensors():
        kind, _, name = key.split(".", 2)
        owners.setdefault(name, set()).add(kind)
    for name, parameter in model.named_parameters():
        hidden = name.startswith("blocks.") and parameter.ndim == 2
        assert owners[name] == {"muon" if hidden else "adamw"}, name


@pytest.mark.parametrize("feedforward", ["swiglu", "gelu"])
def test_fused_projections_are_orthogonalized_part_by_part(make_model, make_settings, feedforward):
    model = make_model(feedforward=feedforward)
    optimizer = Optimizer(model, make_settings(optimizer="muon", weight_decay=0.0, muon_learning_rate=1.0))
    before = weights(model)
    give_gradients(model)
    optimizer.step(1.0, ONE)
    config = model.config
    up_parts = (config.d_ff, config.d_ff) if feedforward == "swiglu" else (config.d_ff,)
    for name, rows in (("attention.qkv", config.qkv_sizes), ("feedforward.up", up_parts)):
        weight = model.get_parameter(f"blocks.0.{name}.weight")
        moved = weight.detach() - before[f"blocks.0.{name}.weight"]
        for part in moved.split(rows):
            scale = max(1.0, part.shape[0] / part.shape[1]) ** 0.5
            values = torch.linalg.svdvals(part) / scale
            assert values.min() > 0.3
            assert values.max() < 1.25


def test_both_optimizers_decay_matrices_by_their_own_rate(make_model, make_settings):
    """Without gradients only the decay moves them."""
    model = make_model()
    settings = make_settings(optimizer="muon", weight_decay=0.5, learning_rate=0.1, muon_learning_rate=0.2)
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Optimizer(model, settings).step(1.0, ONE)
    for name, weight in weights(model).items():
        kept = 1.0 if weight.ndim == 1 else 0.9 if name.startswith("blocks.") else 0.95
        torch.testing.assert_close(weight, kept * before[name])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_state(make_model, make_settings, kind):
    model = make_model()
    optimizer = Optimizer(model, make_settings(optimizer=kind))
    give_gradients(model)
    optimizer.step(1.0, ONE)
    before, state = weights(model), {k: v.clone() for k, v in optimizer.state_tensors().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step(1.0, ZERO)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
    assert all(torch.equal(value, state[name]) for name, value in optimizer.state_tensors().items())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_loaded_state_continues_bit_for_bit(make_model, make_settings, kind):
    first, second = make_model(), make_model()
    settings = make_settings(optimizer=kind)
    one, two = Optimizer(first, settings), Optimizer(second, settings)
    give_gradients(first, 0)
    one.step(1.0, ONE)
    second.load_state_dict(first.state_dict())
    two.load_state_tensors({name: value.clone() for name, value in one.state_tensors().items()})
    for model, optimizer in ((first, one), (second, two)):
        give_gradients(model, 1)
        optimizer.step(0.7, ONE)
    assert all(torch.equal(weight, weights(second)[name]) for name, weight in weights(first).items())


def test_frozen_parameters_are_left_alone(make_model, make_settings):
    model = make_model()
    model.embedding.weight.requires_grad_(False)
    give_gradients(model)
    before = model.embedding.weight.detach().clone()
    Optimizer(model, make_settings()).step(1.0, ONE)
    assert torch.equal(model.embedding.weight.detach(), before)


def test_zero_grad_drops_every_gradient(make_model, make_settings):
    model = make_model()
    give_gradients(model)
    Optimizer(model, make_settings(optimizer="muon")).zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
