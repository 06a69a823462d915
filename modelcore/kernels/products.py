"""Matrix products of a few rows, with what stands before and after them in a block.

One row asks for every weight once and does two operations with it: the time is that of reading the weights. So all
kernels here read each weight once, whatever the number of rows, and a norm, a bias, RoPE, an activation or the residual
stream costs no pass of its own. Sums are in fp32. Weights are floating point, or int8 with one scale a row
(:mod:`modelcore.gptx.int8`), which multiplies the sum.
"""

import triton
import triton.language as tl

from modelcore.kernels.dependent_launch import let_next_start, wait


@triton.jit
def _one_row(
    x_ptr, weight_ptr, rows, valid, norm_weight_ptr, norm_bias_ptr, eps,
    width: tl.constexpr, block_k: tl.constexpr, whole_k: tl.constexpr, norm: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """Products of the weight's ``rows`` with one vector, normalized before where ``norm`` says so: (rows,)."""
    k = tl.arange(0, block_k)
    start_ptr = weight_ptr + rows.to(tl.int64)[:, None] * width
    weight = tl.load(start_ptr + k[None, :], mask=valid[:, None] & (k < width)[None, :], other=0.0)
    wait(early)
    mean, scale = 0.0, 1.0
    if norm != "none":
        every = tl.arange(0, whole_k)
        x = tl.load(x_ptr + every, mask=every < width, other=0.0).to(tl.float32)
        if norm == "layernorm":
            mean = tl.sum(x) / width
            x = tl.where(every < width, x - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(x * x) / width + eps)
    for start in tl.static_range(0, width, block_k):
        at = start + k
        x = tl.load(x_ptr + at, mask=at < width, other=0.0).to(tl.float32)
        if norm != "none":
            x = (x - mean) * scale * tl.load(norm_weight_ptr + at, mask=at < width, other=0.0).to(tl.float32)
            if norm_bias_ptr is not None:
                x += tl.load(norm_bias_ptr + at, mask=at < width, other=0.0).to(tl.float32)
        now = weight
        if start + block_k < width:  # the next piece is on its way while this one is multiplied
            next_k = at + block_k
            weight = tl.load(start_ptr + next_k[None, :], mask=valid[:, None] & (next_k < width)[None, :], other=0.0)
        if start == 0:
            total = now.to(tl.float32) * x[None, :]
        else:
            total += now.to(tl.float32) * x[None, :]
    return tl.sum(total, axis=1)


@triton.jit
def _few_rows(
    x_ptr, weight_ptr, rows, valid, n_rows,
    width: tl.constexpr, block_m: tl.constexpr, block_k: tl.constexpr, stages: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """Products of the weight's ``rows`` with up to block_m vectors: (block_m, rows)."""
    wait(early)
    k, m = tl.arange(0, block_k), tl.arange(0, block_m)
    start_ptr = weight_ptr + rows.to(tl.int64)[:, None] * width
    total = tl.zeros([block_m, rows.shape[0]], tl.float32)
    for start in tl.range(0, width, block_k, num_stages=stages):
        at = start + k
        x = tl.load(
            x_ptr + m[:, None] * width + at[None, :], mask=(m < n_rows)[:, None] & (at < width)[None, :], other=0.0
        )
        weight = tl.load(start_ptr + at[None, :], mask=valid[:, None] & (at < width)[None, :], other=0.0)
        total = tl.dot(x, tl.trans(weight.to(x.dtype)), total, input_precision="ieee")
    return total


@triton.jit
def _products(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, eps, rows, valid, n_rows,
    width: tl.constexpr, block_m: tl.constexpr, block_k: tl.constexpr, whole_k: tl.constexpr,
    norm: tl.constexpr, stages: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """What the linear layer's outputs ``rows`` are for each of the vectors: (block_m, rows) fp32."""
    if block_m == 1:
        y = _one_row(
            x_ptr, weight_ptr, rows, valid, norm_weight_ptr, norm_bias_ptr, eps, width, block_k, whole_k, norm, early
        )[None, :]
    else:
        y = _few_rows(x_ptr, weight_ptr, rows, valid, n_rows, width, block_m, block_k, stages, early)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + rows, mask=valid, other=0.0)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + rows, mask=valid, other=0.0).to(tl.float32)[None, :]
    return y


@triton.jit(do_not_specialize=["n_rows"])
def linear(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, y_ptr, n_rows, n_outputs, eps,
    width: tl.constexpr, after: tl.constexpr, norm: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    block_k: tl.constexpr, whole_k: tl.constexpr, stages: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """A linear layer; a program makes block_n outputs of every row.

    x is (n_rows, width), y (n_rows, n_outputs), the weight (n_outputs, width), or (2 n_outputs, width) for ``swiglu``.
    ``after`` is ``none``, ``add`` (to what is in y), ``gelu``, ``gelu_tanh`` or ``swiglu``; ``norm``, ``none``,
    ``rmsnorm`` or ``layernorm``, is for one row alone.
    """
    if block_m == 1:
        let_next_start(early)
    m, n = tl.arange(0, block_m), tl.program_id(0) * block_n + tl.arange(0, block_n)
    if after == "swiglu":  # row n of the gate beside row n of the other half
        half = tl.arange(0, 2)
        rows = tl.reshape(n[:, None] + half[None, :] * n_outputs, [2 * block_n])
        valid = tl.reshape((n < n_outputs)[:, None] & (half < 2)[None, :], [2 * block_n])
    else:
        rows, valid = n, n < n_outputs
    y = _products(
        x_ptr, weight_ptr, scale_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, eps, rows, valid, n_rows,
        width, block_m, block_k, whole_k, norm, stages, early,
    )  # fmt: skip
    if block_m > 1:  # the next kernel would only take room from this one
        let_next_start(early)
    if after == "swiglu":
        gate, up = tl.split(tl.reshape(y, [block_m, block_n, 2]))
        y = gate * tl.sigmoid(gate) * up
    elif after == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif after == "gelu_tanh":  # (1 + tanh(z)) / 2 is sigmoid(2 z)
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    at = y_ptr + m[:, None] * n_outputs + n[None, :]
    inside = (m < n_rows)[:, None] & (n < n_outputs)[None, :]
    if after == "add":
        y += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_rows", "slots"])
def project_heads(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, cos_ptr, sin_ptr, lengths_ptr,
    queries_ptr, keys_ptr, values_ptr, n_rows, slots, eps,
    width: tl.constexpr, n_heads: tl.constexpr, n_kv_heads: tl.constexpr, head_dim: tl.constexpr, norm: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, whole_k: tl.constexpr,
    stages: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The fused projection: queries, and keys and values into the cache at each row's length; RoPE if cos is given.

    A program makes block_n pairs, channels i and i + head_dim / 2 of a head, which RoPE turns together. Queries are
    (n_rows, n_heads, head_dim), keys and values (n_rows, n_kv_heads, slots, head_dim), tables
    (positions, head_dim / 2).
    """
    if block_m == 1:
        let_next_start(early)
    half: tl.constexpr = head_dim // 2
    m, pair = tl.arange(0, block_m), tl.program_id(0) * block_n + tl.arange(0, block_n)
    head, i = pair // half, pair % half
    side = tl.arange(0, 2)
    rows = tl.reshape((head * head_dim + i)[:, None] + side[None, :] * half, [2 * block_n])
    valid = rows < (n_heads + 2 * n_kv_heads) * head_dim
    y = _products(
        x_ptr, weight_ptr, scale_ptr, bias_ptr, norm_weight_ptr, norm_bias_ptr, eps, rows, valid, n_rows,
        width, block_m, block_k, whole_k, norm, stages, early,
    )  # fmt: skip
    if block_m > 1:  # the next kernel would only take room from this one
        let_next_start(early)
    first, second = tl.split(tl.reshape(y, [block_m, block_n, 2]))
    row_is = (m < n_rows)[:, None]
    position = tl.load(lengths_ptr + m, mask=m < n_rows, other=0)
    if cos_ptr is not None:
        turned = row_is & (head < n_heads + n_kv_heads)[None, :]
        angle = position[:, None] * half + i[None, :]
        cos = tl.load(cos_ptr + angle, mask=turned, other=1.0).to(tl.float32)
        sin = tl.load(sin_ptr + angle, mask=turned, other=0.0).to(tl.float32)
        first, second = first * cos - second * sin, second * cos + first * sin
    first, second = first.to(queries_ptr.dtype.element_ty), second.to(queries_ptr.dtype.element_ty)
    at = queries_ptr + m[:, None] * (n_heads * head_dim) + (head * head_dim + i)[None, :]
    inside = row_is & (head < n_heads)[None, :]
    tl.store(at, first, mask=inside)
    tl.store(at + half, second, mask=inside)
    row = m.to(tl.int64)[:, None] * n_kv_heads
    at = ((row + (head - n_heads)[None, :]) * slots + position[:, None]) * head_dim + i[None, :]
    inside = row_is & ((head >= n_heads) & (head < n_heads + n_kv_heads))[None, :]
    tl.store(keys_ptr + at, first, mask=inside)
    tl.store(keys_ptr + at + half, second, mask=inside)
    at = ((row + (head - n_heads - n_kv_heads)[None, :]) * slots + position[:, None]) * head_dim + i[None, :]
    inside = row_is & ((head >= n_heads + n_kv_heads) & (head < n_heads + 2 * n_kv_heads))[None, :]
    tl.store(values_ptr + at, first, mask=inside)
    tl.store(values_ptr + at + half, second, mask=inside)


@triton.jit
def normalize(
    x_ptr, weight_ptr, bias_ptr, y_ptr, eps, width: tl.constexpr, whole_k: tl.constexpr, norm: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """RMSNorm or LayerNorm of (rows, width); a program takes a row."""
    let_next_start(early)
    k = tl.arange(0, whole_k)
    weight = tl.load(weight_ptr + k, mask=k < width, other=0.0).to(tl.float32)
    wait(early)
    x = tl.load(x_ptr + tl.program_id(0) * width + k, mask=k < width, other=0.0).to(tl.float32)
    if norm == "layernorm":
        x = tl.where(k < width, x - tl.sum(x) / width, 0.0)
    y = x * (1.0 / tl.sqrt(tl.sum(x * x) / width + eps)) * weight
    if bias_ptr is not None:
        y += tl.load(bias_ptr + k, mask=k < width, other=0.0).to(tl.float32)
    tl.store(y_ptr + tl.program_id(0) * width + k, y.to(y_ptr.dtype.element_ty), mask=k < width)


@triton.jit
def embed(
    tokens_ptr, lengths_ptr, embedding_ptr, positions_ptr, x_ptr, vocab, width: tl.constexpr, whole_k: tl.constexpr,
    early: tl.constexpr,
):  # fmt: skip
    """The embedding of each row's token, and of its position if there is a table: (rows, width).

    An id beyond the vocabulary, the sign of broken weights, is read as the last one: the host has yet to see it.
    """
    let_next_start(early)
    wait(early)
    row, k = tl.program_id(0), tl.arange(0, whole_k)
    token = tl.minimum(tl.load(tokens_ptr + row), vocab - 1)
    x = tl.load(embedding_ptr + token * width + k, mask=k < width)
    if positions_ptr is not None:
        x += tl.load(positions_ptr + tl.load(lengths_ptr + row).to(tl.int64) * width + k, mask=k < width)
    tl.store(x_ptr + row * width + k, x, mask=k < width)
