"""The mathematics of RoPE and ALiBi, against their papers and against Hugging Face."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from modelcore.gptx import GPT, GPTConfig
from modelcore.gptx.positions import alibi_bias, alibi_slopes, apply_rope, rope_tables

HEAD_DIM, LENGTH, THETA = 16, 64, 10_000.0


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, LENGTH, HEAD_DIM, generator=torch.Generator().manual_seed(0))


def rotate(vector: torch.Tensor, position: int) -> torch.Tensor:
    """One vector of (head_dim,), rotated as at ``position``."""
    cos, sin = rope_tables(HEAD_DIM, position + 1, THETA)
    return apply_rope(vector.view(1, 1, 1, -1), cos[position:], sin[position:]).view(-1)


def test_rope_leaves_position_zero_alone(x):
    cos, sin = rope_tables(HEAD_DIM, LENGTH, THETA)
    torch.testing.assert_close(apply_rope(x, cos, sin)[:, :, 0], x[:, :, 0], rtol=0, atol=0)


def test_rope_preserves_the_norm_of_every_pair(x):
    cos, sin = rope_tables(HEAD_DIM, LENGTH, THETA)
    pairs, rotated = (torch.stack(t.chunk(2, dim=-1)).norm(dim=0) for t in (x, apply_rope(x, cos, sin)))
    torch.testing.assert_close(rotated, pairs)


def test_rope_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, HEAD_DIM, generator=generator)
    for distance in (0, 1, 7, 30):
        scores = [rotate(q, start + distance) @ rotate(k, start) for start in (0, 1, 13, 100)]
        torch.testing.assert_close(torch.stack(scores), scores[0].expand(4), rtol=0, atol=2e-5)


def test_rope_is_a_rotation_of_complex_numbers(x):
    """Channel i and channel i + D/2 are real and imaginary part of a number turned by p · theta^(-2i/D)."""
    angles = torch.tensor([[p * THETA ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2)] for p in range(LENGTH)])
    real, imaginary = x.chunk(2, dim=-1)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    cos, sin = rope_tables(HEAD_DIM, LENGTH, THETA)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(apply_rope(x, cos, sin), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope_equals_hugging_faces_llama(x, theta):
    config = LlamaConfig(
        hidden_size=3 * HEAD_DIM, num_attention_heads=3, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(apply_rope(x, *rope_tables(HEAD_DIM, LENGTH, theta)), expected, rtol=0, atol=1e-5)


def test_rope_rows_may_stand_at_different_positions(x):
    cos, sin = rope_tables(HEAD_DIM, LENGTH, THETA)
    positions = torch.stack([torch.arange(5, 9), torch.arange(40, 44)])
    rotated = apply_rope(x[:, :, :4], cos[positions][:, None], sin[positions][:, None])
    for row, start in enumerate((5, 40)):
        alone = apply_rope(x[row : row + 1, :, :4], cos[start : start + 4], sin[start : start + 4])
        torch.testing.assert_close(rotated[row : row + 1], alone, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [False, True], ids=["one position a column", "rows at positions of their own"])
def test_ropes_gradient_is_the_rotation_back(rows):
    angles = torch.rand((2, 1, 5, 3) if rows else (5, 3), dtype=torch.float64)
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64).transpose(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, angles.cos(), angles.sin()), x)


def test_rope_returns_the_type_it_was_given(x):
    assert apply_rope(x.bfloat16(), *rope_tables(HEAD_DIM, LENGTH, THETA)).dtype == torch.bfloat16


def test_alibi_slopes_of_eight_heads_are_the_papers():
    """Press et al. 2022, section 3: 1/2, 1/4, … 1/256 for eight heads."""
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]


def test_alibi_slopes_of_sixteen_heads_are_the_papers():
    """Section 3 again: 1/2^0.5, 1/2^1, 1/2^1.5, … 1/2^8."""
    torch.testing.assert_close(alibi_slopes(16), torch.tensor([2.0 ** (-i / 2) for i in range(1, 17)]))


def test_alibi_slopes_of_twelve_heads_interleave_the_next_power():
    """Appendix: the eight slopes of eight heads, then every second of the sixteen of sixteen heads."""
    expected = [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(expected))


@pytest.mark.parametrize("n_heads", [1, 2, 3, 5, 6, 7, 8, 12, 16, 20, 71, 112])
def test_alibi_slopes_equal_hugging_faces_bloom(n_heads):
    """BLOOM's tensor is slope times position, one row a head: its second column is the slopes."""
    bloom = build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(n_heads), bloom, rtol=1e-6, atol=0)


def test_alibi_bias_falls_by_the_slope_with_every_token_of_distance():
    slopes = alibi_slopes(4)
    bias = alibi_bias(slopes, torch.arange(6)[None], torch.arange(6)[None])
    assert bias.shape == (1, 4, 6, 6)
    for head in range(4):
        for query in range(6):
            for key in range(query + 1):
                assert bias[0, head, query, key].item() == pytest.approx(-slopes[head].item() * (query - key))


def test_alibi_bias_gives_the_attention_that_blooms_tensor_gives():
    """BLOOM adds slope · key position; both differ by a constant a query, which softmax does not see."""
    scores = torch.randn(1, 6, 9, 9, generator=torch.Generator().manual_seed(2))
    causal = torch.ones(9, 9, dtype=torch.bool).triu(1)
    ours = scores + alibi_bias(alibi_slopes(6), torch.arange(9)[None], torch.arange(9)[None])
    blooms = scores + build_alibi_tensor(torch.ones(1, 9), 6, torch.float32).view(1, 6, 1, 9)
    attention, expected = (s.masked_fill(causal, -math.inf).softmax(-1) for s in (ours, blooms))
    torch.testing.assert_close(attention, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", ["learned", "rope", "alibi"])
def test_every_scheme_makes_the_model_see_the_order_of_tokens(positions):
    torch.manual_seed(0)
    model = GPT(GPTConfig(17, 8, 1, 16, 2, 2, 32, positions=positions)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        there, back = model(torch.tensor([[1, 2, 3, 4]])), model(torch.tensor([[3, 2, 1, 4]]))
    assert (there[0, -1] - back[0, -1]).abs().max() > 1e-3
