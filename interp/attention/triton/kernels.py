"""Kernels: attention with its statistics in one pass over keys, and the mass that each key receives in another.

A program is one block of queries (or keys) of one head of one prompt. Keys and values are read from their group, not
repeated. A query sees the keys `low <= j < high` and the first `extra` ones of its prompt up to itself; blocks that no
query of the program sees are never read. Scores and sums are float32 whatever the inputs are; `WIDE` has products of
halves done in float32 where there are none of halves (Triton's interpreter).

With e_ij = exp(s_ij - m_i), m_i the largest score so far, every sum over keys is kept as sum_j e_ij x_ij and scaled by
exp(m_old - m_new) when m_i grows, squares by its square; at the end sum_j e_ij gives L_i, and with it p_ij.
"""

import triton
import triton.language as tl

UNSEEN = tl.constexpr(float("-inf"))


@triton.jit
def soft_capped(s, cap):
    """c tanh(s / c)."""
    small = tl.exp(-2.0 * tl.abs(s / cap))
    return tl.where(s < 0, -cap, cap) * (1.0 - small) / (1.0 + small)


@triton.jit
def visible(j, rows, lows, highs, begin, extra, FIRST: tl.constexpr):
    """Whether queries at positions `rows` see keys j; shapes that broadcast together."""
    seen = (j >= lows) & (j < highs)
    if FIRST:
        seen = seen | ((j >= begin) & (j < begin + extra) & (j <= rows) & (highs > lows))
    return seen


@triton.jit
def block_of(base, rows, row_stride, columns, inside, WIDTH: tl.constexpr):
    """Rows of a matrix whose columns stand side by side; zero outside of it."""
    place = base + rows[:, None] * row_stride + columns[None, :]
    return tl.load(place, mask=inside[:, None] & (columns[None, :] < WIDTH), other=0.0)


@triton.jit
def with_slot(share, sum_exp, has_key, sink):
    """What a sink slot leaves of each probability, and L_i with it."""
    top = tl.maximum(sum_exp, sink)
    joined = top + tl.log(tl.exp(sum_exp - top) + tl.exp(sink - top))
    return share * tl.exp(tl.where(has_key, sum_exp - joined, 0.0)), tl.where(has_key, joined, UNSEEN)


@triton.jit
def at_offsets(
    q, keys, k_row, d, offsets, pairs, out, n_query, positions, lows, highs, begin, extra, finite, here, scale, cap,
    WIDTH: tl.constexpr, CAPPED: tl.constexpr, FIRST: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    """p_(i, i-d) for each offset d: scores of single pairs, which no block of keys holds together."""
    for o in tl.static_range(OFFSETS):  # pyright: ignore[reportGeneralTypeIssues]
        j = positions - tl.load(offsets + o)
        seen = visible(j, positions, lows, highs, begin, extra, FIRST) & here
        k = block_of(keys, j, k_row, d, seen, WIDTH)
        s = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * scale
        s = soft_capped(s, cap) if CAPPED else s
        tl.store(pairs + o * n_query + out, tl.where(seen, tl.exp(s - finite), 0.0), mask=here)


@triton.jit
def attend_kernel(
    query, key, value, low, high, start, slot, readout, offsets,
    output, lse, entropy, distance, squares, best, best_key, mass, pairs,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    n_query, n_key, n_head, group, first_position, extra, scale, cap,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    CAPPED: tl.constexpr, SLOT: tl.constexpr, FIRST: tl.constexpr,
    ENTROPY: tl.constexpr, DISTANCE: tl.constexpr, SQUARES: tl.constexpr, BEST: tl.constexpr,
    READOUTS: tl.constexpr, R: tl.constexpr, OFFSETS: tl.constexpr,
):  # fmt: skip
    """z_i, L_i, and of each row: entropy, distance, squares, the best key, read-outs, p at offsets."""
    pair = tl.program_id(1)
    batch, head = pair // n_head, pair % n_head
    rows, d, dv, r = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D), tl.arange(0, DV), tl.arange(0, R)
    here, positions, begin = rows < n_query, rows + first_position, tl.load(start + batch)
    lows = tl.load(low + batch * n_query + rows, mask=here, other=n_key)
    highs = tl.load(high + batch * n_query + rows, mask=here, other=0)
    q = block_of(query + batch * q_batch + head * q_head, rows, q_row, d, here, WIDTH)
    q = q.to(tl.float32) if WIDE else q
    keys, values = key + batch * k_batch + (head // group) * k_head, value + batch * v_batch + (head // group) * v_head
    largest, where = tl.full([M], UNSEEN, tl.float32), tl.full([M], -1, tl.int32)
    total, scores, back, twice = (tl.zeros([M], tl.float32),) * 4
    z, reads = tl.zeros([M, DV], tl.float32), tl.zeros([M, R], tl.float32)

    # blocks of first keys, then those from the lowest key that a query of the block sees
    near = tl.min(lows) // N * N
    opening = begin // N * N if FIRST else near
    n_opening = tl.cdiv(tl.maximum((tl.minimum(begin + extra, near) if FIRST else near) - opening, 0), N)
    for step in range(0, n_opening + tl.cdiv(tl.maximum(tl.max(highs) - near, 0), N)):
        j = tl.where(step < n_opening, opening + step * N, near + (step - n_opening) * N) + tl.arange(0, N)
        inside = j < n_key
        k = block_of(keys, j, k_row, d, inside, WIDTH)
        s = tl.dot(q, tl.trans(k.to(tl.float32) if WIDE else k), input_precision=PRECISION) * scale
        s = soft_capped(s, cap) if CAPPED else s
        seen = visible(j[None, :], positions[:, None], lows[:, None], highs[:, None], begin, extra, FIRST)
        s = tl.where(seen, s, UNSEEN)
        new = tl.maximum(largest, tl.max(s, 1))
        level = tl.where(new == UNSEEN, 0.0, new)
        if BEST:
            where = tl.where(new > largest, tl.min(tl.where(s == new[:, None], j[None, :], n_key), 1), where)
        e, fade, largest = tl.exp(s - level[:, None]), tl.exp(largest - level), new
        total = total * fade + tl.sum(e, 1)
        if ENTROPY:
            scores = scores * fade + tl.sum(e * tl.where(seen, s, 0.0), 1)
        if DISTANCE:
            back = back * fade + tl.sum(e * (positions[:, None] - j[None, :]).to(tl.float32), 1)
        if SQUARES:
            twice = twice * fade * fade + tl.sum(e * e, 1)
        if READOUTS > 0:
            columns = readout + (batch * READOUTS + r[None, :]) * n_key + j[:, None]
            x = tl.load(columns, mask=inside[:, None] & (r[None, :] < READOUTS), other=0.0)
            reads = reads * fade[:, None] + tl.dot(e, x, input_precision=PRECISION)
        v = block_of(values, j, v_row, dv, inside, V_WIDTH)
        v = v.to(tl.float32) if WIDE else v
        z = z * fade[:, None] + tl.dot(e.to(v.dtype), v, input_precision=PRECISION)

    has_key = total > 0
    some = tl.where(has_key, total, 1.0)
    share, sum_exp = tl.where(has_key, 1.0 / some, 0.0), tl.where(has_key, largest + tl.log(some), UNSEEN)
    sink = tl.load(slot + head).to(tl.float32) if SLOT else 0.0
    if SLOT:
        share, sum_exp = with_slot(share, sum_exp, has_key, sink)
    finite, out = tl.where(has_key, sum_exp, 0.0), pair * n_query + rows
    place = output + out[:, None] * V_WIDTH + dv[None, :]
    tl.store(place, (z * share[:, None]).to(output.dtype.element_ty), mask=here[:, None] & (dv[None, :] < V_WIDTH))
    tl.store(lse + out, sum_exp, mask=here)
    if ENTROPY:
        tl.store(entropy + out, finite - scores * share - (tl.exp(sink - finite) * sink if SLOT else 0.0), mask=here)
    tl.store(distance + out, back * share, mask=here & DISTANCE)
    tl.store(squares + out, twice * share * share, mask=here & SQUARES)
    tl.store(best + out, tl.where(has_key, tl.exp(largest - finite), 0.0), mask=here & BEST)
    tl.store(best_key + out, where, mask=here & BEST)
    if READOUTS > 0:
        place = mass + (pair * READOUTS + r[None, :]) * n_query + rows[:, None]
        tl.store(place, reads * share[:, None], mask=here[:, None] & (r[None, :] < READOUTS))
    at_offsets(
        q, keys, k_row, d, offsets, pairs + pair * OFFSETS * n_query, rows, n_query, positions, lows, highs, begin,
        extra, finite, here, scale, cap, WIDTH, CAPPED, FIRST, OFFSETS,
    )  # fmt: skip


@triton.jit
def received_kernel(
    query, key, low, high, start, lse, weight, first_query, last_query, received,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    n_query, n_key, n_head, n_blocks, group, first_position, extra, scale, cap,
    WIDTH: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, CAPPED: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """sum_i w_i exp(s_ij - L_i) for a block of keys, over the blocks of queries that see one of them."""
    block, pair = tl.program_id(0), tl.program_id(1)
    batch, head = pair // n_head, pair % n_head
    j, d = block * N + tl.arange(0, N), tl.arange(0, D)
    inside, begin = j < n_key, tl.load(start + batch)
    k = block_of(key + batch * k_batch + (head // group) * k_head, j, k_row, d, inside, WIDTH)
    k = k.to(tl.float32) if WIDE else k
    first = tl.load(first_query + batch * n_blocks + block) // M * M
    last = tl.load(last_query + batch * n_blocks + block)
    total = tl.zeros([N], tl.float32)
    for step in range(0, tl.cdiv(tl.maximum(last - first, 0), M)):
        rows = first + step * M + tl.arange(0, M)
        here = rows < n_query
        q = block_of(query + batch * q_batch + head * q_head, rows, q_row, d, here, WIDTH)
        lows = tl.load(low + batch * n_query + rows, mask=here, other=n_key)
        highs = tl.load(high + batch * n_query + rows, mask=here, other=0)
        s = tl.dot(k, tl.trans(q.to(tl.float32) if WIDE else q), input_precision=PRECISION) * scale
        s = soft_capped(s, cap) if CAPPED else s
        positions = rows + first_position
        seen = visible(j[:, None], positions[None, :], lows[None, :], highs[None, :], begin, extra, FIRST)
        level = tl.load(lse + pair * n_query + rows, mask=here, other=0.0)
        level = tl.where(level == UNSEEN, 0.0, level)
        w = tl.load(weight + batch * n_query + rows, mask=here, other=0.0)
        total += tl.sum(tl.exp(tl.where(seen, s - level[None, :], UNSEEN)) * w[None, :], 1)
    tl.store(received + pair * n_key + j, total, mask=inside)
