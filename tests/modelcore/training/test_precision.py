import pytest
import torch
import torch.nn.functional as F

from modelcore.training.precision import autocast, fast_kernels

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "capabilities", "dtype"),
    [
        ("auto", {"avx512_bf16": True}, torch.bfloat16),
        ("auto", {"avx512_bf16": False}, torch.float32),
        ("auto", {"architecture": "aarch64"}, torch.float32),
        ("fp32", {"avx512_bf16": True}, torch.float32),
        ("bf16", {"avx512_bf16": False}, torch.bfloat16),
    ],
)
def test_products_on_a_cpu_are_bf16_where_it_has_them_or_they_are_asked_for(
    precision, capabilities, dtype, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with autocast(precision, CPU)():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("length", [64, 512])
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_the_fast_kernels_agree_with_the_reference(precision, length):
    """Within what bf16 inputs summed in fp32 may differ, for CPUs with AMX; elsewhere they are nearer."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16, generator=generator) for _ in range(3))
    a, b = torch.randn(96, 64, generator=generator), torch.randn(64, 80, generator=generator)
    with fast_kernels(precision, CPU, length):
        attended, product = F.scaled_dot_product_attention(q, k, v, is_causal=True), a @ b
    tolerance = 0.02 if precision == "auto" else 1e-5
    torch.testing.assert_close(
        attended, F.scaled_dot_product_attention(q, k, v, is_causal=True), rtol=tolerance, atol=tolerance
    )
    error = (product - (a.double() @ b.double())).norm() / product.norm()
    assert error < (2**-8 if precision == "auto" else 1e-6)


def test_the_choice_ends_with_the_block_however_it_ends():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), fast_kernels("auto", CPU, 64):
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert torch.backends.cuda.flash_sdp_enabled()
