"""Many arrays as one: all parameters of a model in one compiled loop, by a table of where they lie.

The items of the loop are the values of all arrays, one array after the other. A part of it begins and ends anywhere,
and finds its arrays in the table: a row for each array, its first item and then an address for each column; a last row
holds the number of all items.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import array_at, jit, parallel, plus
from .registry import Kernel
from .threads import LEAST, parts


def are_whole(dtype: Any, arrays: Iterable[Any]) -> bool:
    """Whether all are arrays of NumPy of this dtype, float32 or float64, in row-major order without gaps."""
    return dtype.char in "fd" and all(
        type(a) is np.ndarray and a.dtype == dtype and a.flags.c_contiguous for a in arrays
    )


def table_of(sizes: Sequence[int], columns: int) -> Array:
    """A table for arrays of these sizes, without addresses yet."""
    table = np.zeros((len(sizes) + 1, columns + 1), np.int64)
    np.cumsum(sizes, out=table[1:, 0])
    return table


def locate(table: Array, column: int, arrays: Iterable[Array]) -> None:
    """Write addresses into a column of the table; the arrays must stay alive as long as it is used."""
    address = _address()
    table[:-1, column] = [address(a.reshape(-1)) for a in arrays]


@functools.cache
def _address() -> Any:
    """A function for the address of a flat array, in a third of the time that array.ctypes takes."""
    return jit(_where)


def _where(x: Array) -> int:
    return x.ctypes.data


def row_of(table: Array, item: int) -> int:
    """The row of the array that holds an item."""
    low, high = 0, table.shape[0] - 1
    while high - low > 1:
        middle = (low + high) // 2
        if table[middle, 0] <= item:
            low = middle
        else:
            high = middle
    return low


@Kernel
def sum_of_squares(*arrays: Array) -> float:
    """The squares of all values of all arrays, added up in float64."""
    total = 0.0
    for a in arrays:
        flat = a.reshape(-1).astype(np.float64, copy=False)
        total += float(namespace(flat).dot(flat, flat))
    return total


def _squares(x: Array) -> float:
    # Four sums at once, as one would wait for its own last addition. The conversion comes before the product.
    n = x.size // 4
    a, b, c, d = x[:n], x[n : 2 * n], x[2 * n : 3 * n], x[3 * n : 4 * n]
    s = t = u = v = 0.0
    for i in range(n):
        s = plus(s, np.float64(a[i]) * np.float64(a[i]))
        t = plus(t, np.float64(b[i]) * np.float64(b[i]))
        u = plus(u, np.float64(c[i]) * np.float64(c[i]))
        v = plus(v, np.float64(d[i]) * np.float64(d[i]))
    for i in range(4 * n, x.size):
        s = plus(s, np.float64(x[i]) * np.float64(x[i]))
    return s + t + u + v


def _squares_part(
    team: Any, part: int, start: int, stop: int, table: Array, like: Array, sums: Array
) -> None:
    row, total = row_of(table, start), 0.0
    while start < stop:
        first = table[row, 0]
        end = min(stop, table[row + 1, 0])
        if end > start:
            x = array_at(table[row, 1] + (start - first) * like.itemsize, end - start, like)
            total += _squares(x)
            start = end
        row += 1
    sums[part] = total


@sum_of_squares.variant(
    "numba", library="numpy", when=lambda *arrays: are_whole(arrays[0].dtype, arrays)
)
def _numba() -> Any:
    """One loop over all arrays; the sums of its parts are added in their order."""
    run = parallel(_squares_part, _squares, row_of)
    if run is None:
        return None

    def squares(*arrays: Array) -> float:
        table = table_of([a.size for a in arrays], 1)
        locate(table, 1, arrays)
        total = int(table[-1, 0])
        sums = np.zeros(parts(total, LEAST))
        run(total, table, np.empty(0, arrays[0].dtype), sums, least=LEAST)
        return float(sum(sums.tolist()))

    return squares


CUDA_BLOCKS = 1056
"""Eight for each multiprocessor of an H200; a number for all devices, as the order of the sums depends on it."""


@sum_of_squares.variant(
    "cuda", library="cupy", when=lambda *arrays: all(cuda.takes(a) for a in arrays)
)
def _cuda() -> Any:
    """A kernel for each array, and one that adds up. The sum stays on the device: whoever reads it waits for it."""

    def squares(*arrays: Array) -> Array:
        blocks = [min(CUDA_BLOCKS, -(-a.size // (4 * cuda.THREADS))) for a in arrays]
        sums = cuda.empty(arrays[0], (sum(blocks),), np.float64)
        total, start = cuda.empty(arrays[0], (), np.float64), 0
        for a, count in zip(arrays, blocks, strict=True):
            group = 16 // a.dtype.itemsize
            groups = a.size // group if cuda.are_aligned(group, a) else 0
            cuda.launch(
                "adam", f"squares_{a.dtype.name}", count, cuda.THREADS,
                a, a.size, groups, sums[start : start + count],
            )  # fmt: skip
            start += count
        cuda.launch("adam", "add_up", 1, cuda.THREADS, sums, total, sums.size)
        return total

    return squares if cuda.usable() else None
