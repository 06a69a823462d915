"""The next token by temperature, top-k, top-p and min-p: :mod:`modelcore.inference.samplers` as kernels.

The rules keep the likeliest tokens down to some logit, so instead of sorting, the lowest logit that stays is searched
bit by bit: floating-point numbers compare as their bits do, read as whole numbers with the sign turned round.
"""

import triton
import triton.language as tl

from modelcore.kernels.dependent_launch import let_next_start, wait


@triton.jit
def _ranks(logits, n_bits: tl.constexpr):
    """Whole numbers in the order of fp32 ``logits``, of which only the n_bits high bits differ; uint32."""
    bits = logits.to(tl.uint32, bitcast=True)
    ordered = tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return ordered >> (32 - n_bits)


@triton.jit
def find_cutoffs(
    logits_ptr, inverse_temperature_ptr, top_k_ptr, top_p_ptr, rank_ptr, index_ptr, peak_ptr, vocab,
    n_bits: tl.constexpr, block_v: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """Where top-k and top-p cut each row: tokens above ``rank`` stay, and those of that rank from ``index`` on.

    Logits are (rows, vocab). ``peak`` is the highest logit over temperature. Of equally likely tokens at the edge of
    top-p the ones of the highest ids stay, as after a stable sort.
    """
    let_next_start(early)
    wait(early)
    row, index = tl.program_id(0), tl.arange(0, block_v)
    logits = tl.load(logits_ptr + row * vocab + index, mask=index < vocab, other=float("-inf")).to(tl.float32)
    ranks = _ranks(logits, n_bits)
    one = tl.full([], 1, tl.uint32)
    cut = tl.full([], 0, tl.uint32)
    first = 0
    k = tl.load(top_k_ptr + row)
    if (k > 0) & (k < vocab):
        for bit in tl.range(n_bits):
            higher = cut | (one << (n_bits - 1 - bit))
            if tl.sum((ranks >= higher).to(tl.int32)) >= k:
                cut = higher
    scores = logits * tl.load(inverse_temperature_ptr + row)
    peak = tl.max(scores)
    p = tl.load(top_p_ptr + row)
    if p < 1.0:
        mass = tl.where((ranks >= cut) & (index < vocab), tl.exp(scores - peak), 0.0)
        wanted = p * tl.sum(mass)
        edge = tl.full([], 0, tl.uint32)
        for bit in tl.range(n_bits):
            higher = edge | (one << (n_bits - 1 - bit))
            if tl.sum(tl.where(ranks >= higher, mass, 0.0)) >= wanted:
                edge = higher
        if edge >= cut:
            cut = edge
            tied = (ranks == cut) & (index < vocab)
            above = tl.sum(tl.where(ranks > cut, mass, 0.0))
            each = tl.max(tl.where(tied, mass, 0.0))
            n_tied = tl.sum(tied.to(tl.int32))
            needed = tl.ceil((wanted - above) / each).to(tl.int32)
            dropped = n_tied - tl.minimum(tl.maximum(needed, 1), n_tied)
            if dropped > 0:
                for bit in tl.range(31):
                    later = first | (1 << (30 - bit))
                    if tl.sum((tied & (index < later)).to(tl.int32)) <= dropped:
                        first = later
    tl.store(rank_ptr + row, cut.to(tl.int64))
    tl.store(index_ptr + row, first)
    tl.store(peak_ptr + row, peak)


@triton.jit
def find_best(
    logits_ptr, uniform_ptr, inverse_temperature_ptr, min_p_ptr, greedy_ptr, rank_ptr, index_ptr, peak_ptr,
    best_ptr, token_ptr, vocab,
    n_bits: tl.constexpr, block_v: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """The best score among block_v tokens of a row that the cuts leave, by the Gumbel-max trick, and its token.

    Uniform numbers are (rows, vocab) float64 in [0, 1). A logit that is NaN or infinite gives an infinite best and the
    id ``vocab``. Best and token are (rows, pieces).
    """
    let_next_start(early)
    row, piece = tl.program_id(0), tl.program_id(1)
    index = piece * block_v + tl.arange(0, block_v)
    inside = index < vocab
    uniform = tl.load(uniform_ptr + row * vocab + index, mask=inside, other=0.5)
    # 1 - u is exact: u has 53 bits. A uniform number of 0 would make a score infinite; the next one up is 2^-53.
    noise = tl.log(-tl.log(1.0 - tl.maximum(uniform, 5.551115123125783e-17)))
    wait(early)
    logits = tl.load(logits_ptr + row * vocab + index, mask=inside, other=float("-inf")).to(tl.float32)
    ranks = _ranks(logits, n_bits).to(tl.int64)
    scores = logits * tl.load(inverse_temperature_ptr + row)
    rank = tl.load(rank_ptr + row)
    kept = (ranks > rank) | ((ranks == rank) & (index >= tl.load(index_ptr + row)))
    kept = kept & (tl.exp(scores - tl.load(peak_ptr + row)) >= tl.load(min_p_ptr + row))
    if tl.load(greedy_ptr + row) != 0:
        final = logits.to(tl.float64)
    else:
        final = tl.where(kept, scores.to(tl.float64) - noise, float("-inf"))
    final = tl.where(inside, final, float("-inf"))
    best, where = tl.max(final, axis=0, return_indices=True)
    broken = tl.max(((logits != logits) | (logits == float("inf"))).to(tl.int32)) != 0
    token = tl.where(broken, vocab, piece * block_v + where)
    best = tl.where(broken, float("inf"), best)
    pieces = tl.num_programs(1)
    tl.store(best_ptr + row * pieces + piece, best)
    tl.store(token_ptr + row * pieces + piece, token)


@triton.jit(do_not_specialize=["slots"])
def take_best(
    best_ptr, token_ptr, tokens_ptr, lengths_ptr, vocab, slots, pieces, block_p: tl.constexpr, early: tl.constexpr
):
    """Each row's token, the id ``vocab`` where no logit is finite; and one more token in the row's length.

    A row that is over already stays within its slots.
    """
    let_next_start(early)
    wait(early)
    row, p = tl.program_id(0), tl.arange(0, block_p)
    best = tl.load(best_ptr + row * pieces + p, mask=p < pieces, other=float("-inf"))
    highest, where = tl.max(best, axis=0, return_indices=True)
    token = tl.load(token_ptr + row * pieces + where)
    tl.store(tokens_ptr + row, tl.where(highest == float("-inf"), vocab, token).to(tl.int64))
    tl.store(lengths_ptr + row, tl.minimum(tl.load(lengths_ptr + row) + 1, slots - 1))
