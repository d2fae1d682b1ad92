"""Softmax attention on a GPU, tile by tile: scores never exist whole (Dao et al., 2022, "FlashAttention").

A block has WIDTH x WIDTH threads and a tile of TILE = WIDTH R rows. A thread makes R x R scores, of the rows ty,
ty + WIDTH, ... and the columns tx, tx + WIDTH, ..., and then R rows of the result in every WIDTHth column.

Forward, one block for each tile of queries. It goes through the tiles of keys, and keeps of each query the largest
score so far, the sum of exp(score - largest), and that sum weighted with the values. A larger score shrinks both sums
by exp(old - new) (Milakov and Gimelshein, 2018). Their quotient is the result, and the largest plus the sum's
logarithm is kept for the pullback: infinity where nothing was seen. A NaN is never larger; it comes through the sums.

Pullback, twice the same kernel. A tile of queries goes through the keys for the gradient of q; a tile of keys goes
through the queries for those of k and v. Nothing is added by two blocks, so the same bits come again, at the price of
7 products where one pass with atomic additions would have 5. Probabilities made again from a logarithm have its
rounding as a relative error: 4e-6 for one about 100, where the definition, which keeps them, has less.

With heads of 64, a tile of 32 rows: 4 B H T S 64 FLOP forward, 2.5 times that back (3.5 are done); a tile of keys and
values, 16 KB, serves 262,144 multiplications and additions, so 16 FLOP per byte of the cache. Predicted for an H200,
not measured: 5 to 10 TFLOP/s forward, held back by shared memory, of which 8 values serve 16 multiplications.
"""

import functools
import math
from typing import Any

from numba import cuda, float32, uint32

from ...backend import namespace
from ...types import Array
from ..attention import Kept, Rules
from .launch import launch, tiles

WIDTH = 8
"""Threads in each direction of a block."""
_LOWEST = float32(-math.inf)


def _visible(
    mask: Any, masked: Any, causal: Any, b: Any, h: Any, t: Any, s: Any, T: Any, S: Any
) -> Any:
    """Whether there is a query t and a key s, and it may see it."""
    if t >= T or s >= S or (causal and s > t + S - T):
        return False
    return mask[b, h, t, s] if masked else True


def _seen_by(t: Any, causal: Any, T: Any, S: Any) -> Any:
    """How many keys query t can see at most."""
    return t + 1 + S - T if causal and t + 1 < T else S


visible = cuda.jit(_visible, device=True)
seen_by = cuda.jit(_seen_by, device=True)


@functools.cache
def _tools(size: int, width: int, R: int) -> tuple[Any, Any, Any]:
    """What forward and pullback share, for heads of a size, with R rows of a tile for each thread.

    Indices in the inner loops are without a sign: else the compiler asks for each load whether it counts from the end.
    """
    tile = width * R

    def bring(x: Any, b: Any, h: Any, first: Any, into: Any) -> None:
        """Copy a tile of rows to shared memory; 0 where x has ended."""
        for e in range(cuda.threadIdx.y * width + cuda.threadIdx.x, tile * size, width * width):
            row, d = e // size, e % size
            inside = first + row < x.shape[2] and d < x.shape[3]
            into[row, d] = x[b, h, first + row, d] if inside else float32(0)

    def score(left: Any, right: Any, out: Any) -> None:
        """Each thread's products of rows with rows."""
        for r in range(R):
            for c in range(R):
                out[r, c] = float32(0)
        for d in range(size):
            for r in range(R):
                value = left[uint32(cuda.threadIdx.y + width * r), uint32(d)]
                for c in range(R):
                    out[r, c] += value * right[uint32(cuda.threadIdx.x + width * c), uint32(d)]

    def weigh(weights: Any, right: Any, out: Any) -> None:
        """Add each thread's rows of weights times a tile."""
        for j in range(tile):
            for r in range(R):
                weight = weights[uint32(cuda.threadIdx.y + width * r), uint32(j)]
                for c in range(size // width):
                    out[r, c] += weight * right[uint32(j), uint32(cuda.threadIdx.x + width * c)]

    return tuple(cuda.jit(f, device=True) for f in (bring, score, weigh))


@functools.cache
def forward_kernel(size: int, width: int, R: int) -> Any:
    """The result and the logarithms, of heads of up to a size."""
    tile, columns = width * R, size // width
    padded, square = (tile, size + 1), (tile, tile + 1)  # or a column would lie in one bank
    bring, score, weigh = _tools(size, width, R)

    def forward(
        q: Any, k: Any, v: Any, mask: Any, masked: Any, causal: Any, scale: Any, y: Any, log_sum: Any
    ) -> None:  # fmt: skip
        queries = cuda.shared.array(padded, float32)
        others = cuda.shared.array(padded, float32)  # keys, then values
        weights = cuda.shared.array(square, float32)
        s = cuda.local.array((R, R), float32)
        out = cuda.local.array((R, columns), float32)
        top = cuda.local.array(R, float32)
        total = cuda.local.array(R, float32)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        h, b = cuda.blockIdx.y, cuda.blockIdx.z
        T, S = q.shape[2], k.shape[2]
        first = (cuda.gridDim.x - 1 - cuda.blockIdx.x) * tile  # those that see most start first
        for r in range(R):
            top[r], total[r] = _LOWEST, float32(0)
            for c in range(columns):
                out[r, c] = float32(0)
        bring(q, b, h, first, queries)
        for start in range(0, seen_by(first + tile - 1, causal, T, S), tile):
            cuda.syncthreads()  # the values before have been used
            bring(k, b, h, start, others)
            cuda.syncthreads()
            score(queries, others, s)
            for r in range(R):
                for c in range(R):
                    row, column = ty + width * r, tx + width * c
                    seen = visible(mask, masked, causal, b, h, first + row, start + column, T, S)
                    s[r, c] = scale * s[r, c] if seen else _LOWEST
                    weights[row, column] = s[r, c]
            cuda.syncthreads()  # all scores are there, and keys have been used
            bring(v, b, h, start, others)
            for r in range(R):
                new = top[r]
                for j in range(tile):
                    one = weights[ty + width * r, j]
                    new = one if one > new else new
                base = float32(0) if new == _LOWEST else new  # else -inf - -inf, which is NaN
                shrink = float32(math.exp(top[r] - base))
                top[r] = new
                total[r] *= shrink
                for c in range(columns):
                    out[r, c] *= shrink
                for c in range(R):
                    s[r, c] = float32(math.exp(s[r, c] - base))
            cuda.syncthreads()  # all have looked at the scores
            for r in range(R):
                for c in range(R):
                    weights[ty + width * r, tx + width * c] = s[r, c]
            cuda.syncthreads()
            for r in range(R):
                for j in range(tile):
                    total[r] += weights[ty + width * r, j]
            weigh(weights, others, out)
        for r in range(R):
            t = first + ty + width * r
            if t < T:
                empty = total[r] == 0
                for c in range(columns):
                    d = tx + width * c
                    if d < y.shape[3]:
                        y[b, h, t, d] = float32(0) if empty else out[r, c] / total[r]
                if tx == 0:
                    if empty:
                        log_sum[b, h, t] = -_LOWEST
                    else:
                        log_sum[b, h, t] = top[r] + float32(math.log(total[r]))

    return cuda.jit(forward)


@functools.cache
def pullback_kernel(size: int, width: int, R: int, of_keys: bool) -> Any:
    """Gradients of a tile's own rows: of queries, or of keys and values.

    `own` and `own_value` are q and the gradient of the result, `other` and `other_value` k and v; of keys the other
    way round. So scores and the gradient of probabilities are in both cases products of own rows with others.
    """
    tile, columns = width * R, size // width
    padded, square = (tile, size + 1), (tile, tile + 1)  # or a column would lie in one bank
    bring, score, weigh = _tools(size, width, R)

    def pullback(
        own: Any, own_value: Any, other: Any, other_value: Any, mask: Any, masked: Any, causal: Any,
        scale: Any, log_sum: Any, along: Any, g_own: Any, g_own_value: Any,
    ) -> None:  # fmt: skip
        mine = cuda.shared.array(padded, float32)
        my_values = cuda.shared.array(padded, float32)
        theirs = cuda.shared.array(padded, float32)
        their_values = cuda.shared.array(padded, float32)
        slopes = cuda.shared.array(square, float32)
        weights = cuda.shared.array(square, float32)
        s = cuda.local.array((R, R), float32)
        gp = cuda.local.array((R, R), float32)
        out = cuda.local.array((R, columns), float32)
        out_value = cuda.local.array((R, columns), float32)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        h, b = cuda.blockIdx.y, cuda.blockIdx.z
        first = cuda.blockIdx.x * tile
        begin, end = 0, other.shape[2]
        if of_keys:
            T, S = other.shape[2], own.shape[2]
            if causal:  # tiles of queries that see none of these keys are left out
                begin = first - (S - T) if first > S - T else 0
                begin = begin // tile * tile
        else:
            T, S = own.shape[2], other.shape[2]
            end = seen_by(first + tile - 1, causal, T, S)
        for r in range(R):
            for c in range(columns):
                out[r, c] = float32(0)
                out_value[r, c] = float32(0)
        bring(own, b, h, first, mine)
        bring(own_value, b, h, first, my_values)
        for start in range(begin, end, tile):
            cuda.syncthreads()  # the tiles before have been used
            bring(other, b, h, start, theirs)
            bring(other_value, b, h, start, their_values)
            cuda.syncthreads()
            score(mine, theirs, s)
            score(my_values, their_values, gp)
            for r in range(R):
                for c in range(R):
                    row, column = ty + width * r, tx + width * c
                    t, u = first + row, start + column
                    if of_keys:
                        t, u = u, t
                    p, slope = float32(0), float32(0)
                    if visible(mask, masked, causal, b, h, t, u, T, S):
                        p = float32(math.exp(scale * s[r, c] - log_sum[b, h, t]))
                        slope = scale * p * (gp[r, c] - along[b, h, t])
                    slopes[row, column] = slope
                    if of_keys:
                        weights[row, column] = p
            cuda.syncthreads()
            weigh(slopes, theirs, out)
            if of_keys:
                weigh(weights, their_values, out_value)
        for r in range(R):
            row = first + ty + width * r
            if row < own.shape[2]:
                for c in range(columns):
                    d = tx + width * c
                    if d < g_own.shape[3]:
                        g_own[b, h, row, d] = out[r, c]
                    if of_keys and d < g_own_value.shape[3]:
                        g_own_value[b, h, row, d] = out_value[r, c]

    return cuda.jit(pullback)


def rows_of_a_thread(size: int) -> int:
    """R for heads of a size, so that the pullback needs no more than the 48 KB of shared memory that every GPU has."""
    return 4 if size <= 64 else 2


def forward(
    q: Array, k: Array, v: Array, bias: None, rules: Rules, keep: bool,
    *, width: int = WIDTH, R: int | None = None,
) -> Kept:  # fmt: skip
    """Computes `attention_forward` without bias and dropout, and keeps no probabilities."""
    xp = namespace(q)
    B, H, T, _ = q.shape
    size = tiles(max(q.shape[3], v.shape[3]), width) * width
    R = R or rows_of_a_thread(size)
    y = xp.empty((B, T, H, v.shape[3]), q.dtype).swapaxes(1, 2)
    log_sum = xp.empty((B, H, T), q.dtype)
    launch(
        forward_kernel(size, width, R), (tiles(T, width * R), H, B), (width, width),
        q, k, v, *_settings(rules, q, k), y, log_sum,
    )  # fmt: skip
    return Kept(y, None, log_sum.reshape(-1))


def pullback(
    g: Array, g_p: None, q: Array, k: Array, v: Array, bias: None, rules: Rules, found: Kept,
    into: tuple[Array, Array, Array], *, width: int = WIDTH, R: int | None = None,
) -> None:  # fmt: skip
    """Computes `attention_pullback` without bias and dropout, from the logarithms that `forward` kept."""
    (B, H, T, _), S = q.shape, k.shape[2]
    size = tiles(max(q.shape[3], v.shape[3]), width) * width
    R = R or rows_of_a_thread(size)
    gq, gk, gv = into
    # The sum over the keys of p times its gradient is that over the head of y times its own.
    along = (g * found.y).sum(axis=-1)
    assert found.log_sum is not None
    rest = *_settings(rules, q, k), found.log_sum.reshape(B, H, T), along
    block = (width, width)
    launch(
        pullback_kernel(size, width, R, False), (tiles(T, width * R), H, B), block,
        q, g, k, v, *rest, gq, gq,
    )  # fmt: skip
    launch(
        pullback_kernel(size, width, R, True), (tiles(S, width * R), H, B), block,
        k, v, q, g, *rest, gk, gv,
    )  # fmt: skip


def _settings(rules: Rules, q: Array, k: Array) -> tuple[Any, ...]:
    """Mask for each query and key, without copies, and whether there is one; causal; scale."""
    xp, shape = namespace(q), (*q.shape[:3], k.shape[2])
    mask = xp.ones((1, 1, 1, 1), bool) if rules.mask is None else rules.mask
    masked = rules.mask is not None
    return xp.broadcast_to(mask, shape), masked, rules.causal, q.dtype.type(rules.scale)
