"""Each product kernel equals the modules that it replaces: within fp32's rounding, and half precision's own."""

import pytest
import torch
import torch.nn.functional as F

from modelcore.gptx.int8 import dequantize_int8, quantize_int8
from modelcore.gptx.positions import apply_rope, rope_tables
from modelcore.kernels import products

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # of the largest output


def assert_close(ours, reference):
    error = (ours.float() - reference.float()).abs().max() / reference.float().abs().max()
    assert error < TOLERANCE[ours.dtype], f"off by {error:.1e}"


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def linear(x, weight, scale=None, bias=None, norm=None, after="none", y=None, kind="rmsnorm"):
    """The kernel, with tiles that divide neither inputs nor outputs."""
    n_outputs = (len(weight) // 2) if after == "swiglu" else len(weight)
    y = torch.full((len(x), n_outputs), float("nan"), dtype=x.dtype, device=x.device) if y is None else y
    one = len(x) == 1
    norm_weight, norm_bias = norm or (None, None)
    block_n = 4 if one else 16
    products.linear[(-(-n_outputs // block_n),)](
        x, weight, scale, bias, norm_weight, norm_bias, y, len(x), n_outputs, 1e-5,
        width=x.shape[1], after=after, norm=kind if norm else "none", block_m=1 if one else 16 * -(-len(x) // 16),
        block_n=block_n, block_k=32, whole_k=128, stages=2, early=False,
    )  # fmt: skip
    return y


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_a_linear_layer_with_a_bias_added_to_the_residual_stream(rows, dtype, device):
    x, weight, bias = (random(*shape, dtype=dtype, device=device) for shape in ((rows, 80), (37, 80), (37,)))
    residual = random(rows, 37, dtype=dtype, device=device, seed=1)
    reference = residual.double() + F.linear(x.double(), weight.double(), bias.double())
    assert_close(linear(x, weight, bias=bias, after="add", y=residual), reference)


@pytest.mark.parametrize("after", ["gelu", "gelu_tanh", "swiglu"])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_activations_of_the_feed_forward_layer(rows, after, device):
    x, weight = random(rows, 80, device=device), random(2 * 21, 80, device=device) / 4
    h = F.linear(x, weight)
    if after == "swiglu":
        reference = F.silu(h[:, :21]) * h[:, 21:]
    else:
        reference = F.gelu(h, approximate="tanh" if after == "gelu_tanh" else "none")
    assert_close(linear(x, weight, after=after), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_a_norm_before_a_product_of_one_row(kind, dtype, device):
    x = 3 * random(1, 80, dtype=dtype, device=device) + 1
    weight, scale, shift = (random(*s, dtype=dtype, device=device, seed=2) for s in ((9, 80), (80,), (80,)))
    if kind == "rmsnorm":
        shift, normed = None, F.rms_norm(x.double(), (80,), scale.double(), 1e-5)
    else:
        normed = F.layer_norm(x.double(), (80,), scale.double(), shift.double(), 1e-5)
    assert_close(linear(x, weight, norm=(scale, shift), kind=kind), normed @ weight.double().T)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_a_norm_of_several_rows(kind, device):
    x, weight, bias = 3 * random(3, 80, device=device) + 1, random(80, device=device), random(80, device=device)
    y = torch.full_like(x, float("nan"))
    bias = None if kind == "rmsnorm" else bias
    products.normalize[(3,)](x, weight, bias, y, 1e-5, width=80, whole_k=128, norm=kind, early=False)
    reference = F.layer_norm(x, (80,), weight, bias, 1e-5) if bias is not None else F.rms_norm(x, (80,), weight, 1e-5)
    assert_close(y, reference)


@pytest.mark.parametrize("rows", [1, 3])
def test_int8_weights_are_those_that_their_scales_make_of_them(rows, device):
    x, weight = random(rows, 80, device=device), random(37, 80, device=device)
    values, scale = quantize_int8(weight)
    assert_close(linear(x, values, scale=scale), x @ dequantize_int8(values, scale).T)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("rope", [True, False], ids=["rope", "no rope"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 2), (3, 1)])
def test_heads_are_turned_and_written_to_the_cache_at_each_rows_own_length(heads, kv_heads, rope, rows, device):
    d, slots = 16, 12
    x = random(rows, 48, device=device)
    weight, bias = (
        random((heads + 2 * kv_heads) * d, 48, device=device),
        random((heads + 2 * kv_heads) * d, device=device),
    )
    lengths = torch.tensor([5, 0, 11][:rows], dtype=torch.int32, device=device)
    queries = torch.full((rows, heads, d), float("nan"), device=device)
    keys, values = (torch.full((rows, kv_heads, slots, d), 7.0, device=device) for _ in range(2))
    cos, sin = (table.to(device) for table in rope_tables(d, slots, 100.0))
    products.project_heads[(-(-(heads + 2 * kv_heads) * d // 2 // 16),)](
        x, weight, None, bias, None, None, cos if rope else None, sin if rope else None, lengths,
        queries, keys, values, rows, slots, 1e-5,
        width=48, n_heads=heads, n_kv_heads=kv_heads, head_dim=d, norm="none",
        block_m=1 if rows == 1 else 16, block_n=16, block_k=32, whole_k=64, stages=2, early=False,
    )  # fmt: skip
    q, k, v = F.linear(x, weight, bias).view(rows, -1, d).split((heads, kv_heads, kv_heads), dim=1)
    if rope:
        at = lengths.long()
        q, k = (
            apply_rope(part[:, :, None], cos[at][:, None, None], sin[at][:, None, None])[:, :, 0] for part in (q, k)
        )
    assert_close(queries, q)
    for stored, new in ((keys, k), (values, v)):
        for row, length in enumerate(lengths.tolist()):
            assert_close(stored[row, :, length], new[row])
            assert (stored[row, :, [slot for slot in range(slots) if slot != length]] == 7.0).all()


def test_embeddings_of_tokens_and_positions(device):
    embedding, table = random(10, 48, device=device), random(6, 48, device=device, seed=1)
    tokens, lengths = torch.tensor([3, 10], device=device), torch.tensor([5, 0], dtype=torch.int32, device=device)
    x = torch.empty(2, 48, device=device)
    products.embed[(2,)](tokens, lengths, embedding, table, x, 10, width=48, whole_k=64, early=False)
    assert torch.equal(x, embedding[[3, 9]] + table[[5, 0]])  # id 10, of broken weights, is read as the last
