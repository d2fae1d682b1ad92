"""Softmax, LayerNorm and RMSNorm on a GPU: one block of threads for each row.

Thread t takes the columns t, t + THREADS, ..., so that neighbours read neighbours. What the whole row must know, its
largest value or a sum, the threads find together in shared memory, in log2(THREADS) steps. (Shuffles within a warp
would need fewer steps; the simulator has none, and bytes decide anyway.) A row is read again from the cache.

Bytes of each value, predicted for an H200 at 70 to 85 % of its 4.3 TB/s, not measured: softmax 8, its pullback 12,
norms 8 (16 with a branch), their pullbacks 20 (24 with a gradient of the sum), as gain and bias need a second visit.
"""

import functools
import math
from typing import Any

from numba import cuda, float32

from ...backend import namespace
from ...types import Array
from .launch import launch, tiles

THREADS = 128
"""Threads of a block, a power of two."""
ROWS = 64
"""Rows that a thread adds up for the gradients of gain and bias."""

_LOWEST = float32(-math.inf)


def _row_sum(value: Any, room: Any) -> Any:
    """The sum over the threads of a block of one value each, known to all of them."""
    t = cuda.threadIdx.x
    room[t] = value
    cuda.syncthreads()
    half = room.size // 2
    while half > 0:
        if t < half:
            room[t] += room[t + half]
        cuda.syncthreads()
        half //= 2
    total = room[0]
    cuda.syncthreads()  # all have read it before anyone uses the room again
    return total


def _larger(a: Any, b: Any) -> Any:
    """The larger of two. A NaN may be passed over: it comes through the sum."""
    return b if b > a else a


row_sum = cuda.jit(_row_sum, device=True)
larger = cuda.jit(_larger, device=True)


def _row_max(value: Any, room: Any) -> Any:
    """The largest over the threads of a block of one value each, known to all of them."""
    t = cuda.threadIdx.x
    room[t] = value
    cuda.syncthreads()
    half = room.size // 2
    while half > 0:
        if t < half:
            room[t] = larger(room[t], room[t + half])
        cuda.syncthreads()
        half //= 2
    top = room[0]
    cuda.syncthreads()
    return top


row_max = cuda.jit(_row_max, device=True)


@functools.cache
def softmax_kernel(threads: int) -> Any:
    """Exponentials of a row over their sum."""

    def softmax(x: Any, y: Any) -> None:
        room = cuda.shared.array(threads, float32)
        r, t, C = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
        top = _LOWEST
        for c in range(t, C, threads):
            top = larger(top, x[r, c])
        top = row_max(top, room)
        if top == _LOWEST:  # then everything becomes exp(-inf), which is 0
            top = float32(0)
        total = float32(0)
        for c in range(t, C, threads):
            e = float32(math.exp(x[r, c] - top))
            y[r, c] = e
            total += e
        total = row_sum(total, room)
        if total == 0:
            total = float32(1)
        for c in range(t, C, threads):
            y[r, c] /= total

    return cuda.jit(softmax)


@functools.cache
def softmax_pullback_kernel(threads: int) -> Any:
    """Y (g - sum(g y)) of a row."""

    def softmax_pullback(g: Any, y: Any, gx: Any) -> None:
        room = cuda.shared.array(threads, float32)
        r, t, C = cuda.blockIdx.x, cuda.threadIdx.x, y.shape[1]
        along = float32(0)
        for c in range(t, C, threads):
            along += g[r, c] * y[r, c]
        along = row_sum(along, room)
        for c in range(t, C, threads):
            gx[r, c] = y[r, c] * (g[r, c] - along)

    return cuda.jit(softmax_pullback)


@functools.cache
def norm_kernel(threads: int) -> Any:
    """LayerNorm of a row if centred, else RMSNorm; of whole = x + branch if added, else whole is x."""

    def norm(
        x: Any, branch: Any, gain: Any, bias: Any, eps: Any, added: Any, centred: Any,
        whole: Any, y: Any, mean: Any, scale: Any,
    ) -> None:  # fmt: skip
        room = cuda.shared.array(threads, float32)
        r, t, C = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
        width, middle = float32(C), float32(0)
        total, square = float32(0), float32(0)
        if added:
            for c in range(t, C, threads):
                whole[r, c] = x[r, c] + branch[r, c]
        if centred:
            for c in range(t, C, threads):
                total += whole[r, c]
            middle = row_sum(total, room) / width
        for c in range(t, C, threads):
            d = whole[r, c] - middle
            square += d * d
        square = row_sum(square, room)
        s = float32(1) / float32(math.sqrt(square / width + eps))
        for c in range(t, C, threads):
            n = (whole[r, c] - middle) * s * gain[c]
            y[r, c] = n + bias[c] if centred else n
        if t == 0:
            scale[r, 0] = s
            if centred:
                mean[r, 0] = middle

    return cuda.jit(norm)


@functools.cache
def norm_pullback_kernel(threads: int) -> Any:
    """The gradient of a row, from that of its normalised form, and of the sum if added."""

    def norm_pullback(
        g: Any, g_sum: Any, x: Any, mean: Any, scale: Any, gain: Any, added: Any, centred: Any, gx: Any
    ) -> None:  # fmt: skip
        room = cuda.shared.array(threads, float32)
        r, t, C = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
        width, s, middle = float32(C), scale[r, 0], float32(0)
        total, along = float32(0), float32(0)
        if centred:
            middle = mean[r, 0]
        for c in range(t, C, threads):
            h = g[r, c] * gain[c]
            total += h
            along += h * ((x[r, c] - middle) * s)
        along = row_sum(along, room) / width
        total = row_sum(total, room) / width if centred else float32(0)
        for c in range(t, C, threads):
            n = (x[r, c] - middle) * s
            own = (g[r, c] * gain[c] - total - n * along) * s
            gx[r, c] = own + g_sum[r, c] if added else own

    return cuda.jit(norm_pullback)


@functools.cache
def norm_sums_kernel(threads: int, rows: int) -> Any:
    """Gradients of gain and bias, of so many rows: a thread for each column."""

    def norm_sums(g: Any, x: Any, mean: Any, scale: Any, centred: Any, sums: Any) -> None:
        part, c = cuda.blockIdx.x, cuda.blockIdx.y * threads + cuda.threadIdx.x
        R, C = x.shape
        stop = (part + 1) * rows
        if stop > R:
            stop = R
        if c < C:
            to_gain, to_bias = float32(0), float32(0)
            for r in range(part * rows, stop):
                d = x[r, c] - mean[r, 0] if centred else x[r, c]
                to_gain += g[r, c] * (d * scale[r, 0])
                to_bias += g[r, c]
            sums[part, 0, c] = to_gain
            sums[part, 1, c] = to_bias

    return cuda.jit(norm_sums)


def softmax(x: Array, axis: int, *, threads: int = THREADS) -> Array:
    """Computes `softmax_forward` along the last axis."""
    y = namespace(x).empty(x.shape, x.dtype)
    rows = (a.reshape(-1, x.shape[-1]) for a in (x, y))
    launch(softmax_kernel(threads), (x.size // x.shape[-1],), (threads,), *rows)
    return y


def softmax_pullback(g: Array, y: Array, axis: int, *, threads: int = THREADS) -> Array:
    """Computes `softmax_pullback` along the last axis."""
    gx = namespace(y).empty(y.shape, y.dtype)
    rows = (a.reshape(-1, y.shape[-1]) for a in (g, y, gx))
    launch(softmax_pullback_kernel(threads), (y.size // y.shape[-1],), (threads,), *rows)
    return gx


def layer_norm(
    x_RC: Array, branch_RC: Array | None, gain: Array, bias: Array, eps: float, *, threads: int = THREADS
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Computes `layer_norm_forward`."""
    return _norm(x_RC, branch_RC, gain, bias, eps, threads)


def rms_norm(
    x_RC: Array, branch_RC: Array | None, gain: Array, eps: float, *, threads: int = THREADS
) -> tuple[Array, Array, Array]:
    """Computes `rms_norm_forward`."""
    whole_RC, y_RC, _, scale_R1 = _norm(x_RC, branch_RC, gain, None, eps, threads)
    return whole_RC, y_RC, scale_R1


def layer_norm_pullback(
    g_RC: Array, g_sum_RC: Array | None, x_RC: Array, mean_R1: Array, scale_R1: Array, gain: Array,
    *, threads: int = THREADS, rows: int = ROWS,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Computes `layer_norm_pullback`."""
    return _norm_pullback(g_RC, g_sum_RC, x_RC, mean_R1, scale_R1, gain, threads, rows)


def rms_norm_pullback(
    g_RC: Array, g_sum_RC: Array | None, x_RC: Array, scale_R1: Array, gain: Array,
    *, threads: int = THREADS, rows: int = ROWS,
) -> tuple[Array, Array]:  # fmt: skip
    """Computes `rms_norm_pullback`."""
    return _norm_pullback(g_RC, g_sum_RC, x_RC, None, scale_R1, gain, threads, rows)[:2]


# A kernel takes no None: what is absent is stood in for by an array that it never reads.


def _norm(
    x: Array, branch: Array | None, gain: Array, bias: Array | None, eps: float, threads: int
) -> tuple[Array, Array, Array, Array]:
    xp = namespace(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
    whole = x if branch is None else xp.empty(x.shape, x.dtype)
    mean, scale = xp.empty((len(x), 1), x.dtype), xp.empty((len(x), 1), x.dtype)
    launch(
        norm_kernel(threads), (len(x),), (threads,),
        x, x if branch is None else branch, gain, gain if bias is None else bias, x.dtype.type(eps),
        branch is not None, bias is not None, whole, y, mean, scale,
    )  # fmt: skip
    return whole, y, mean, scale


def _norm_pullback(
    g: Array, g_sum: Array | None, x: Array, mean: Array | None, scale: Array, gain: Array,
    threads: int, rows: int,
) -> tuple[Array, Array, Array]:  # fmt: skip
    xp = namespace(x)
    (R, C), parts = x.shape, tiles(len(x), rows)
    gx, sums = xp.empty(x.shape, x.dtype), xp.empty((parts, 2, C), x.dtype)
    middle, centred = scale if mean is None else mean, mean is not None
    launch(
        norm_pullback_kernel(threads), (R,), (threads,),
        g, g if g_sum is None else g_sum, x, middle, scale, gain, g_sum is not None, centred, gx,
    )  # fmt: skip
    launch(
        norm_sums_kernel(threads, rows), (parts, tiles(C, threads)), (threads,),
        g, x, middle, scale, centred, sums,
    )  # fmt: skip
    to_gain, to_bias = sums.sum(axis=0)
    return gx, to_gain, to_bias
