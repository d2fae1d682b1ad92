"""The product of two matrices on a GPU, in three steps, each of which removes what held the one before back.

y = a b + keep y + bias, for float32 matrices (N, K) and (K, M) of any sizes, each by rows or by columns: an array
knows its strides, so that a turned matrix is the same matrix. What an H200 is predicted to do (its plain float32
arithmetic ends at 67 TFLOP/s, its memory at 4.3 TB/s; nothing of this is measured):

| step | a value that is loaded serves | FLOP per byte from memory or cache | predicted |
|---|---|---|---|
| naive | one multiplication | 1/4 | 0.6 TFLOP/s |
| shared | TILE = 16 of them | 2 TILE^2 / (4 2 TILE) = 4 | 8 to 9 TFLOP/s |
| registers | SIDE = 128; and 8 from shared memory | 2 SIDE^2 / (4 2 SIDE) = 32 | 20 to 33 TFLOP/s |

The naive one is held back by loads: two for each multiplication. With tiles in shared memory most of them disappear
from memory, but every multiplication still waits for two loads from shared memory, of which a multiprocessor makes 32
values in a clock, where it could multiply 128. So in the last step a thread makes 8 by 8 results, which live in its
registers: 16 loads then serve 64 multiplications. Tensor cores are out of Numba's reach.
"""

import functools
from typing import Any

from numba import cuda, float32, uint32

from ...backend import namespace
from ...errors import ConfigError
from ...types import Array
from .launch import launch, tiles

TILE = 16
"""Rows and columns of a tile in the first two steps: 256 threads, one for each result."""
SIDE = 128
"""Rows and columns of a tile in the last step."""
DEPTH = 8
"""Terms of the sums that a tile in the last step brings at a time: 2 (SIDE + 4) DEPTH values, twice, are 17 KB."""
EACH = 8
"""Rows and columns that a thread makes in the last step: 64 sums, of the 255 registers that it may have."""


def _finish(total: Any, bias: Any, keep: Any, y: Any, i: Any, j: Any) -> None:
    """Store a result: what it was before counts only if something of it is to be kept."""
    if keep != 0:
        total += keep * y[i, j]
    if bias.size > 0:
        total += bias[j]
    y[i, j] = total


finish = cuda.jit(_finish, device=True)


@functools.cache
def naive_kernel(tile: int) -> Any:
    """One thread for each result, which reads a row and a column. Neighbours in a row of threads share the row."""

    def naive(a: Any, b: Any, bias: Any, keep: Any, y: Any) -> None:
        i = cuda.blockIdx.x * tile + cuda.threadIdx.y
        j = cuda.blockIdx.y * tile + cuda.threadIdx.x
        if i < y.shape[0] and j < y.shape[1]:
            total = float32(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            finish(total, bias, keep, y, i, j)

    return cuda.jit(naive)


@functools.cache
def shared_kernel(tile: int) -> Any:
    """Adds: a block of threads brings a tile of each matrix to shared memory, where all of its threads read it."""

    def shared(a: Any, b: Any, bias: Any, keep: Any, y: Any) -> None:
        left = cuda.shared.array((tile, tile), float32)
        right = cuda.shared.array((tile, tile), float32)
        r, c = cuda.threadIdx.y, cuda.threadIdx.x
        i, j = cuda.blockIdx.x * tile + r, cuda.blockIdx.y * tile + c
        (N, M), K = y.shape, a.shape[1]
        total = float32(0)
        for start in range(0, K, tile):
            left[r, c] = a[i, start + c] if i < N and start + c < K else float32(0)
            right[r, c] = b[start + r, j] if start + r < K and j < M else float32(0)
            cuda.syncthreads()
            for k in range(tile):
                total += left[r, k] * right[k, c]
            cuda.syncthreads()  # before the next tiles take the place of these
        if i < N and j < M:
            finish(total, bias, keep, y, i, j)

    return cuda.jit(shared)


@functools.cache
def register_kernel(side: int, depth: int, each: int) -> Any:
    """Adds: a thread makes `each` by `each` results in registers, and fetches the next tiles while it multiplies.

    They lie far apart, so that neighbouring threads make neighbouring results. A tile lies in shared memory term by
    term, so that those threads read neighbouring values of one term. There are two places for tiles, of which one is
    read while the other is filled: one barrier for each tile.
    """
    across = side // each  # threads of a block are across x across
    count = across * across
    share = side * depth // count  # values of a tile that a thread brings
    padded = side + 4  # else values of one row of a matrix would lie in one bank of shared memory
    size = 2 * depth * padded
    if across * each != side or share * count != side * depth:
        raise ConfigError(
            f"register_kernel: a tile of side={side} and depth={depth} with each={each} cannot be shared equally; "
            "choose side as a multiple of each, and depth so that (side / each)^2 divides side * depth"
        )

    def place(e: Any, by_term: Any) -> tuple[Any, Any]:
        """Row and term of value e of a tile; neighbouring threads take what lies together in memory."""
        return (e // depth, e % depth) if by_term else (e % side, e // side)

    where = cuda.jit(place, device=True)

    def fetch(x: Any, first: Any, start: Any, by_term: Any, own: Any) -> None:
        """Read this thread's share of a tile to registers; beyond the matrix there is 0."""
        for s in range(share):
            row, term = where(cuda.threadIdx.x + s * count, by_term)
            row, term = first + row, start + term
            own[s] = x[row, term] if row < x.shape[0] and term < x.shape[1] else float32(0)

    fetched = cuda.jit(fetch, device=True)

    def put(own: Any, by_term: Any, at: Any, tile: Any) -> None:
        """Store it to shared memory."""
        for s in range(share):
            row, term = where(cuda.threadIdx.x + s * count, by_term)
            tile[(at * depth + term) * padded + row] = own[s]

    stored = cuda.jit(put, device=True)

    def registers(
        a: Any, b_turned: Any, bias: Any, keep: Any, a_by_term: Any, b_by_term: Any, y: Any
    ) -> None:
        left = cuda.shared.array(size, float32)
        right = cuda.shared.array(size, float32)
        sums = cuda.local.array((each, each), float32)
        rows = cuda.local.array(each, float32)
        columns = cuda.local.array(each, float32)
        own_a = cuda.local.array(share, float32)
        own_b = cuda.local.array(share, float32)
        r0, c0 = cuda.threadIdx.x // across, cuda.threadIdx.x % across
        i0, j0 = cuda.blockIdx.x * side, cuda.blockIdx.y * side
        for r in range(each):
            for c in range(each):
                sums[r, c] = float32(0)
        fetched(a, i0, 0, a_by_term, own_a)
        fetched(b_turned, j0, 0, b_by_term, own_b)
        stored(own_a, a_by_term, 0, left)
        stored(own_b, b_by_term, 0, right)
        cuda.syncthreads()
        steps = (a.shape[1] + depth - 1) // depth
        for step in range(steps):
            now = step % 2
            if step + 1 < steps:
                fetched(a, i0, (step + 1) * depth, a_by_term, own_a)
                fetched(b_turned, j0, (step + 1) * depth, b_by_term, own_b)
            for k in range(depth):
                # Without a sign, or for each load the compiler asks whether it counts from the array's end.
                at_left = uint32((now * depth + k) * padded + r0)
                at_right = uint32((now * depth + k) * padded + c0)
                for e in range(each):
                    rows[e] = left[at_left + across * e]
                    columns[e] = right[at_right + across * e]
                for r in range(each):
                    for c in range(each):
                        sums[r, c] += rows[r] * columns[c]
            if step + 1 < steps:
                stored(own_a, a_by_term, 1 - now, left)
                stored(own_b, b_by_term, 1 - now, right)
            cuda.syncthreads()
        for r in range(each):
            for c in range(each):
                i, j = i0 + r0 + across * r, j0 + c0 + across * c
                if i < y.shape[0] and j < y.shape[1]:
                    finish(sums[r, c], bias, keep, y, i, j)

    return cuda.jit(registers)


def product_naive(
    a_NK: Array, b_KM: Array, out: Array | None = None, keep: float = 0.0, *, tile: int = TILE
) -> Array:
    """Computes `product`; the first step."""
    return _by_threads(naive_kernel(tile), tile, a_NK, b_KM, out, keep)


def product_shared(
    a_NK: Array, b_KM: Array, out: Array | None = None, keep: float = 0.0, *, tile: int = TILE
) -> Array:
    """Computes `product`; the second step."""
    return _by_threads(shared_kernel(tile), tile, a_NK, b_KM, out, keep)


def product(
    a_NK: Array, b_KM: Array, out: Array | None = None, keep: float = 0.0,
    *, bias: Array | None = None, side: int = SIDE, depth: int = DEPTH, each: int = EACH,
) -> Array:  # fmt: skip
    """Computes `product`; the last step."""
    y, bias = _room(a_NK, b_KM, out, bias)
    turned = b_KM.T
    launch(
        register_kernel(side, depth, each), (tiles(len(a_NK), side), tiles(len(turned), side)),
        ((side // each) ** 2,),
        a_NK, turned, bias, y.dtype.type(keep), _by_term(a_NK), _by_term(turned), y,
    )  # fmt: skip
    return y


def linear(x_ND: Array, weight_DF: Array, bias_F: Array | None, **sizes: Any) -> Array:
    """Computes `linear_forward`."""
    return product(x_ND, weight_DF, bias=bias_F, **sizes)


def _by_threads(
    kernel: Any, tile: int, a: Array, b: Array, out: Array | None, keep: float
) -> Array:
    y, bias = _room(a, b, out, None)
    grid = tiles(len(a), tile), tiles(b.shape[1], tile)
    launch(kernel, grid, (tile, tile), a, b, bias, y.dtype.type(keep), y)
    return y


def _room(a: Array, b: Array, out: Array | None, bias: Array | None) -> tuple[Array, Array]:
    """Where the result goes; and the bias, with no value if there is none."""
    xp = namespace(a)
    y = xp.empty((len(a), b.shape[1]), a.dtype) if out is None else out
    return y, xp.empty(0, a.dtype) if bias is None else bias


def _by_term(x: Array) -> bool:
    """Whether the values of a row lie together."""
    return bool(x.strides[1] <= x.strides[0])
