"""Many arrays as one: all parameters of a model in one compiled loop, by a table of where they lie.

The items of the loop are the values of all arrays, one array after the other. A part of it begins and ends anywhere,
and finds its arrays in the table: a row for each array, its first item and then an address for each column; a last row
holds the number of all items.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import array_at, jit, parallel, plus
from .pieces import Pieces
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


@sum_of_squares.variant(
    "cuda", library="cupy", when=lambda *arrays: all(cuda.takes(a) for a in arrays)
)
def _cuda() -> Any:
    """One launch for all arrays, and one that adds up. The sum stays on the device: whoever reads it waits for it.

    A table of the arrays is sent there at each call; Clipping keeps its own.
    """

    def squares(*arrays: Array) -> Array:
        sums = _squares_on_device(Pieces(arrays[0], [a.size for a in arrays]), arrays[0], arrays)
        total = cuda.empty(arrays[0], (), np.float64)
        cuda.launch("adam", "add_up", 1, SUMMING, sums, sums.size, total)
        return total

    return squares if cuda.usable() else None


SUMMING = 1024
"""Threads of the block that adds up; as in adam.cu."""


def _squares_on_device(pieces: Pieces, like: Array, arrays: Sequence[Array]) -> Array:
    """The sum of squares of each piece."""
    sums = cuda.empty(like, (pieces.count,), np.float64)
    pieces.launch("squares_of_many", arrays, sums)
    return sums


class Clipping:
    """Loss and gradient norm of a step, and what clipping makes of them, where the gradients are: nobody waits.

    If loss or norm is not finite the factor is 0 and stays 0, so the first non-finite update the host reads is the
    first that was skipped.

    Attributes:
        found: float64, the loss and the norm.
        factor: float32, what the gradients are to be multiplied by, and 1 if an update was left out.
    """

    def __init__(self, like: Array) -> None:
        self.found = cuda.empty(like, (2,), np.float64, zeros=True)
        self.factor = cuda.empty(like, (2,), np.float32, zeros=True)
        self._pieces: dict[tuple[int, ...], Pieces] = {}  # kept, as a graph may use them

    def __call__(self, gradients: Sequence[Array], losses: Array, limit: float | None) -> None:
        """Look at the gradients.

        Args:
            gradients: float32, float16 or bfloat16.
            losses: float64, of the batches; the loss is their sum.
            limit: longest norm allowed, or None.
        """
        gradients, most = list(cuda.whole(*gradients)), math.inf if limit is None else limit
        if not cuda.usable() or not all(cuda.takes(g) for g in gradients):
            return self._in_plain_code(gradients, losses, most)
        sizes = tuple(g.size for g in gradients)
        if sizes not in self._pieces:
            self._pieces[sizes] = Pieces(losses, sizes)
        sums = _squares_on_device(self._pieces[sizes], losses, gradients)
        cuda.launch(
            "adam", "clip_by_norm", 1, SUMMING,
            sums, sums.size, losses, losses.size, float(most), self.found, self.factor,
        )  # fmt: skip

    def _in_plain_code(self, gradients: Sequence[Array], losses: Array, limit: float) -> None:
        """What the kernels compute."""
        xp = namespace(losses)
        squares = [xp.square(g.astype(np.float64)).sum() for g in gradients]
        loss, norm = losses.sum(), xp.sqrt(sum(squares, xp.zeros(())))
        self.found[0], self.found[1] = loss, norm
        fine = xp.isfinite(loss) & xp.isfinite(norm) & (self.factor[1] == 0)
        self.factor[0] = xp.where(fine, xp.minimum(limit / (norm + 1e-6), 1), 0)
        self.factor[1] = xp.where(fine, 0, 1)
