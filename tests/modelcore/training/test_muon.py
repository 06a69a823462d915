import pytest
import torch
from torch import nn

from modelcore.training.muon import Muon, orthogonalize

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


def parameter(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(rows, columns, generator=generator))
    weight.grad = torch.randn(rows, columns, generator=generator)
    return weight


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32)])
def test_orthogonalize_keeps_the_singular_vectors_and_brings_the_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    for matrix, result in zip(matrices, found, strict=True):
        u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
        middle = u.T @ result @ vt.T
        assert (middle - middle.diag().diag()).abs().max() < 1e-3
        # Jordan's coefficients promise 0.68 … 1.13 for values that are not tiny against the norm.
        large = values > 0.02 * values.norm()
        assert ((middle.diag()[large] > 0.6) & (middle.diag()[large] < 1.25)).all()


def test_fewer_iterations_bring_the_values_less_near_one():
    matrices = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))
    smallest = [torch.linalg.svdvals(orthogonalize(matrices, iterations)).min() for iterations in (1, 3, 5)]
    assert smallest == sorted(smallest)


def test_zero_stays_zero():
    assert (orthogonalize(torch.zeros(1, 4, 4)) == 0).all()


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (48, 24), (24, 48)])
def test_steps_agree_with_torchs_own_muon(rows, columns):
    """torch iterates in bf16, so its update is a little off ours."""
    ours, theirs = parameter(rows, columns), parameter(rows, columns)
    start = ours.detach().clone()
    muon = Muon({"w": (ours, [rows])}, weight_decay=0.1, momentum=0.95)
    torch_muon = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95)
    for step in range(3):
        gradient = torch.randn(rows, columns, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step(0.02, ONE)
        torch_muon.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.999
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_fused_matrices_move_like_separate_ones():
    """Query, key and value one above the other, of which the query is wider than tall and the others are square."""
    parts = [parameter(16, 16, seed=1), parameter(8, 16, seed=2), parameter(8, 16, seed=3)]
    fused = nn.Parameter(torch.cat([part.detach() for part in parts]))
    fused.grad = torch.cat([part.grad for part in parts])
    Muon({"qkv": (fused, [16, 8, 8])}, weight_decay=0.1).step(0.02, ONE)
    separate = Muon({str(i): (part, [part.shape[0]]) for i, part in enumerate(parts)}, weight_decay=0.1)
    separate.step(0.02, ONE)
    torch.testing.assert_close(fused.detach(), torch.cat([part.detach() for part in parts]))


def test_a_matrix_moves_the_same_alone_and_in_a_stack():
    alone, first, tall = parameter(8, 24, seed=1), parameter(8, 24, seed=1), parameter(24, 8, seed=2)
    Muon({"a": (alone, [8])}, weight_decay=0.0).step(0.02, ONE)
    Muon({"a": (first, [8]), "b": (tall, [24])}, weight_decay=0.0).step(0.02, ONE)
    torch.testing.assert_close(first.detach(), alone.detach())


def test_a_step_that_is_not_finite_changes_nothing():
    weight = parameter(8, 8)
    muon = Muon({"w": (weight, [8])}, weight_decay=0.1)
    muon.step(0.02, ONE)
    before, momentum = weight.detach().clone(), muon.state_tensors()["w"]
    weight.grad = torch.full((8, 8), float("nan"))
    muon.step(0.02, ZERO)
    assert torch.equal(weight.detach(), before)
    assert torch.equal(muon.state_tensors()["w"], momentum)


def test_the_state_has_the_parameters_names_and_shapes_and_loads_into_another():
    def make():
        return {"qkv": (parameter(32, 16, seed=1), [16, 8, 8]), "down": (parameter(16, 48, seed=2), [16])}

    matrices, others = make(), make()
    muon, other = Muon(matrices, weight_decay=0.1), Muon(others, weight_decay=0.1)
    muon.step(0.02, ONE)
    state = muon.state_tensors()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"qkv": (32, 16), "down": (16, 48)}
    torch.testing.assert_close(state["qkv"], 0.05 * matrices["qkv"][0].grad)
    other.load_state_tensors(state)
    for name, tensor in other.state_tensors().items():
        assert torch.equal(tensor, state[name])
