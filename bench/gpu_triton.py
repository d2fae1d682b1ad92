"""A product and a forward attention in Triton, short ones: peers, imported only where Triton is installed."""

from typing import Any

import torch
import triton
import triton.language as tl

ROWS, COLUMNS, TERMS, GROUP = 128, 256, 64, 8
QUERIES, KEYS = 128, 64


@triton.jit
def _product(
    a, b, out, M, N, K, a_row, a_term, b_term, b_column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A tile of the result; GROUP rows of tiles are walked together, column by column."""
    down, across = tl.cdiv(M, ROWS), tl.cdiv(N, COLUMNS)
    block = tl.program_id(0)
    first = block // (GROUP * across) * GROUP
    height = min(down - first, GROUP)
    row = first + block % (GROUP * across) % height
    column = block % (GROUP * across) // height
    # Places are counted in 64 bits: a result may have more than 2^31 values.
    i = ((row * ROWS + tl.arange(0, ROWS)) % M).to(tl.int64)
    j = ((column * COLUMNS + tl.arange(0, COLUMNS)) % N).to(tl.int64)
    k = tl.arange(0, TERMS)
    left = a + i[:, None] * a_row + k[None, :] * a_term
    right = b + k[:, None] * b_term + j[None, :] * b_column
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, K, TERMS):
        here = k < K - start
        x = tl.load(left, mask=here[None, :], other=0.0)
        y = tl.load(right, mask=here[:, None], other=0.0)
        total = tl.dot(x, y, total)
        left += TERMS * a_term
        right += TERMS * b_term
    i = (row * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    j = (column * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    inside = (i[:, None] < M) & (j[None, :] < N)
    tl.store(out + i[:, None] * N + j[None, :], total.to(out.dtype.element_ty), mask=inside)


def product(a: Any, b: Any) -> Any:
    """A b, of matrices with any strides."""
    (M, K), N = a.shape, b.shape[1]
    out = torch.empty((M, N), dtype=a.dtype, device=a.device)
    blocks = triton.cdiv(M, ROWS) * triton.cdiv(N, COLUMNS)
    _product[(blocks,)](
        a, b, out, M, N, K, *a.stride(), *b.stride(),
        ROWS, COLUMNS, TERMS, GROUP, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


@triton.jit
def _attend(
    q, k, v, out, T, S, scale, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, o_b, o_h, o_t, H,
    CAUSAL: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Some queries of a head over all keys that they may see, with a running maximum."""
    tile, b, h = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
    t, s, c = tile * QUERIES + tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, WIDTH)
    x = tl.load(
        q + b * q_b + h * q_h + t[:, None] * q_t + c[None, :], mask=t[:, None] < T, other=0.0
    )
    top = tl.full((QUERIES,), -1.0e30, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    made = tl.zeros((QUERIES, WIDTH), tl.float32)
    last = min(S, (tile + 1) * QUERIES + S - T) if CAUSAL else S
    for start in range(0, last, KEYS):
        here = start + s
        keys = tl.load(
            k + b * k_b + h * k_h + here[:, None] * k_t + c[None, :],
            mask=here[:, None] < S,
            other=0.0,
        )
        score = tl.dot(x, tl.trans(keys)) * scale
        seen = here[None, :] < S
        if CAUSAL:
            seen = seen & (here[None, :] <= t[:, None] + S - T)
        score = tl.where(seen, score, -1.0e30)
        higher = tl.maximum(top, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(p, 1)
        values = tl.load(
            v + b * v_b + h * v_h + here[:, None] * v_t + c[None, :],
            mask=here[:, None] < S,
            other=0.0,
        )
        made = tl.dot(p.to(values.dtype), values, made * fade[:, None])
        top = higher
    to = out + b * o_b + h * o_h + t[:, None] * o_t + c[None, :]
    tl.store(to, (made / total[:, None]).to(out.dtype.element_ty), mask=t[:, None] < T)


def attention(q: Any, k: Any, v: Any, *, scale: float, causal: bool) -> Any:
    """Softmax attention (B, H, T, K), of which the last axis is contiguous and K a power of two."""
    B, H, T, width = q.shape
    out = torch.empty((B, T, H, width), dtype=q.dtype, device=q.device).transpose(1, 2)
    strides = [n for x in (q, k, v, out) for n in x.stride()[:3]]
    _attend[(triton.cdiv(T, QUERIES), B * H)](
        q, k, v, out, T, k.shape[2], scale * 1.4426950408889634, *strides, H,
        causal, width, QUERIES, KEYS, num_warps=4 if width <= 64 else 8, num_stages=3,
    )  # fmt: skip
    return out
