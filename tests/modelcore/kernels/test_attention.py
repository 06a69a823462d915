"""Attention of one new token over the cache equals PyTorch's, however the keys are shared out."""

import pytest
import torch
import torch.nn.functional as F

from modelcore.kernels.attention import attend


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(6, 2, 16), (2, 2, 24), (16, 1, 16)])
def test_every_row_sees_its_own_keys_alone(heads, kv_heads, d, splits, device):
    """Rows of one key, of less than a share, and of several shares with a rest; what lies beyond is NaN."""
    generator = torch.Generator().manual_seed(0)
    lengths, slots = [0, 13, 89], 90
    q = torch.randn(3, heads, d, generator=generator).to(device)
    k, v = torch.randn(2, 3, kv_heads, slots, d, generator=generator).to(device)
    group = heads // kv_heads
    block_g = 1 if group == 1 else max(16, group)
    y = torch.full_like(q, float("nan"))
    sums = torch.full((3, kv_heads, splits, block_g, d), float("nan"), device=device)
    peaks, weights = torch.full((2, 3, kv_heads, splits, block_g), float("nan"), device=device)
    done = torch.zeros(3 * kv_heads, dtype=torch.int32, device=device)
    for row, length in enumerate(lengths):
        k[row, :, length + 1 :] = v[row, :, length + 1 :] = float("nan")
    for _ in range(2):  # the second time finds what the first left
        attend[(3, kv_heads, splits)](
            q, k, v, torch.tensor(lengths, dtype=torch.int32, device=device), y, sums, peaks, weights, done, slots,
            1.4426950408889634 / d**0.5, n_heads=heads, n_kv_heads=kv_heads, head_dim=d, block_d=16 if d == 16 else 32,
            block_g=block_g, block_s=16, splits=splits, fewest=16, early=False,
        )  # fmt: skip
    for row, length in enumerate(lengths):
        held = slice(None, length + 1)
        reference = F.scaled_dot_product_attention(
            q[row, :, None], k[row, :, held], v[row, :, held], enable_gqa=heads != kv_heads
        )
        torch.testing.assert_close(y[row], reference[:, 0], rtol=1e-5, atol=1e-5)
