"""Attention of one new token a row over the cache, split over the keys (Dao et al. 2023, Flash-Decoding)."""

import triton
import triton.language as tl

from modelcore.kernels.dependent_launch import let_next_start, wait


@triton.jit(do_not_specialize=["slots"])
def attend(
    queries_ptr, keys_ptr, values_ptr, lengths_ptr, y_ptr, sums_ptr, peaks_ptr, weights_ptr, done_ptr, slots, scale,
    n_heads: tl.constexpr, n_kv_heads: tl.constexpr, head_dim: tl.constexpr, block_d: tl.constexpr,
    block_g: tl.constexpr, block_s: tl.constexpr, splits: tl.constexpr, fewest: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """A program takes one row, one key head with all its query heads, and one of at most splits shares of the keys.

    A row has ``lengths[row]`` keys, and the new token's own, which the kernel before has just written; the last share
    takes that one too. How the keys are shared out depends on their number alone (fewest at least, a multiple of
    block_s), so one captured grid serves every length; programs without a share end at once. The last program of a row
    and head to come adds up the shares, always in the same order. ``done`` counts the programs that have come, and is
    zero before and after.

    Queries and y are (rows, n_heads, head_dim), keys and values (rows, n_kv_heads, slots, head_dim); sums is
    (rows, n_kv_heads, splits, block_g, head_dim) fp32, peaks and weights the same without head_dim. ``scale`` is
    log2(e) / sqrt(head_dim).
    """
    let_next_start(early)
    group: tl.constexpr = n_heads // n_kv_heads
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + row)
    share = tl.maximum(tl.cdiv(tl.cdiv(length, block_s), splits) * block_s, fewest)
    n_shares = tl.maximum(tl.cdiv(length, share), 1)
    begin, end = split * share, tl.minimum(split * share + share, length)
    if split < n_shares:
        g, d, s = tl.arange(0, block_g), tl.arange(0, block_d), tl.arange(0, block_s)
        inside = (g < group)[:, None] & (d < head_dim)[None, :]
        of_group = (row * n_heads + head * group + g)[:, None] * head_dim + d[None, :]
        from_row = (row * n_kv_heads + head).to(tl.int64) * slots * head_dim
        held = (begin + s < end)[:, None] & (d < head_dim)[None, :]
        offsets = from_row + (begin + s)[:, None] * head_dim + d[None, :]
        keys = tl.load(keys_ptr + offsets, mask=held, other=0.0)  # of earlier steps: there is nothing to wait for
        values = tl.load(values_ptr + offsets, mask=held, other=0.0)
        wait(early)
        q = tl.load(queries_ptr + of_group, mask=inside, other=0.0)
        newest = from_row + length * head_dim + d
        has_newest = split == n_shares - 1
        key = tl.load(keys_ptr + newest, mask=d < head_dim, other=0.0).to(tl.float32)
        value = tl.load(values_ptr + newest, mask=d < head_dim, other=0.0).to(tl.float32)
        score = tl.sum(q.to(tl.float32) * key[None, :], axis=1) * scale  # (block_g,)
        peak = tl.where(has_newest, score, float("-inf"))
        weight = tl.where(has_newest, 1.0, 0.0) + tl.zeros([block_g], tl.float32)
        total = tl.where(has_newest, value, 0.0)[None, :] + tl.zeros([block_g, block_d], tl.float32)
        for start in tl.range(begin, end, block_s):
            if block_g == 1:
                scores = tl.sum(keys.to(tl.float32) * q.to(tl.float32), axis=1)[None, :]
            else:
                scores = tl.dot(q, tl.trans(keys), input_precision="ieee")  # (block_g, block_s)
            scores = tl.where((start + s < end)[None, :], scores * scale, float("-inf"))
            now = values
            following = start + block_s + s
            held = (following < end)[:, None] & (d < head_dim)[None, :]
            offsets = from_row + following[:, None] * head_dim + d[None, :]
            keys = tl.load(keys_ptr + offsets, mask=held, other=0.0)
            values = tl.load(values_ptr + offsets, mask=held, other=0.0)
            new_peak = tl.maximum(peak, tl.max(scores, axis=1))
            shrink, p = tl.exp2(peak - new_peak), tl.exp2(scores - new_peak[:, None])
            weight = weight * shrink + tl.sum(p, axis=1)
            if block_g == 1:
                added = tl.sum(tl.trans(p) * now.to(tl.float32), axis=0)[None, :]
            else:
                added = tl.dot(p.to(now.dtype), now, input_precision="ieee")
            total = total * shrink[:, None] + added
            peak = new_peak
        if n_shares == 1:
            tl.store(y_ptr + of_group, (total / weight[:, None]).to(y_ptr.dtype.element_ty), mask=inside)
        else:
            place = row * n_kv_heads + head
            slot = (place * splits + split) * block_g + g
            tl.store(sums_ptr + slot[:, None] * head_dim + d[None, :], total, mask=inside)
            tl.store(peaks_ptr + slot, peak)
            tl.store(weights_ptr + slot, weight)
            tl.debug_barrier()  # all warps have stored before the program counts as done
            if tl.atomic_add(done_ptr + place, 1, sem="acq_rel", scope="gpu") == n_shares - 1:
                first = place * splits * block_g + g
                highest = tl.zeros([block_g], tl.float32) + float("-inf")
                for one in tl.static_range(splits):
                    came = (g < group) & (one < n_shares)
                    peak = tl.load(
                        peaks_ptr + first + one * block_g, mask=came, other=float("-inf"), cache_modifier=".cg"
                    )
                    highest = tl.maximum(highest, peak)
                highest = tl.where(g < group, highest, 0.0)
                total = tl.zeros([block_g, block_d], tl.float32)
                weight = tl.zeros([block_g], tl.float32)
                for one in tl.static_range(splits):
                    came = (g < group) & (one < n_shares)
                    slot = first + one * block_g
                    peak = tl.load(peaks_ptr + slot, mask=came, other=float("-inf"), cache_modifier=".cg")
                    part = tl.load(
                        sums_ptr + slot[:, None] * head_dim + d[None, :],
                        mask=came[:, None] & (d < head_dim)[None, :],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    factor = tl.exp2(peak - highest)  # 0 for shares that are not there
                    weight += tl.load(weights_ptr + slot, mask=came, other=0.0, cache_modifier=".cg") * factor
                    total += part * factor[:, None]
                total = total / tl.where(g < group, weight, 1.0)[:, None]
                tl.store(y_ptr + of_group, total.to(y_ptr.dtype.element_ty), mask=inside)
                tl.store(done_ptr + place, 0)
    else:
        wait(early)
