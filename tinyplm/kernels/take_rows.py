"""Rows of a table by number, which is an embedding, and its gradient: rows added up by number."""

import math
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import is_float, parallel
from .registry import Kernel
from .threads import LEAST

BLOCK = 16
"""Columns that a part takes at least: a cache line of float32, so that no two parts write to one."""


@Kernel
def copy_rows(table: Array, ids_N: Array) -> Array:
    """The rows with these ids, each from 0 to the number of rows."""
    return table[ids_N]


@Kernel
def add_rows(g: Array, ids_N: Array, rows: int) -> Array:
    """A table of that many rows; row v is the sum of the rows of g whose id is v.

    Rows are sorted by id, keeping their order, and each run is added up: the same sum in the same order every time.
    On a card sums of halves are float32.
    """
    xp, wide = namespace(g), np.float32 if g.dtype.itemsize == 2 else g.dtype
    table = xp.zeros((rows, *g.shape[1:]), g.dtype if xp is np else wide)
    if ids_N.size == 0:
        return table
    if xp is not np:
        xp.add.at(table, ids_N, g.astype(wide, copy=False))
        return table
    order = np.argsort(ids_N, kind="stable")
    present, starts = np.unique(ids_N[order], return_index=True)
    table[present] = np.add.reduceat(g[order], starts, axis=0, dtype=wide)
    return table


def _copy_part(
    team: Any, part: int, start: int, stop: int, table_VC: Array, ids_N: Array, y_NC: Array
) -> None:
    for n in range(start, stop):
        row, out = table_VC[ids_N[n]], y_NC[n]
        for c in range(out.size):
            out[c] = row[c]


def _clear_part(team: Any, part: int, start: int, stop: int, flat: Array) -> None:
    flat[start:stop] = 0


def _add_part(
    team: Any, part: int, start: int, stop: int, g_NC: Array, ids_N: Array, table_VC: Array
) -> None:
    # All rows of some columns: parts of one size however often an id repeats, and the order of the rows in each sum.
    first, last = start * BLOCK, min(stop * BLOCK, g_NC.shape[1])
    for n in range(g_NC.shape[0]):
        row, total = g_NC[n, first:last], table_VC[ids_N[n], first:last]
        for c in range(row.size):
            total[c] += row[c]


@copy_rows.variant("numba", library="numpy", when=lambda table, ids_N: is_float(table))
def _numba_copy() -> Any:
    """Rows shared between threads."""
    run = parallel(_copy_part)
    if run is None:
        return None

    def copy(table: Array, ids_N: Array) -> Array:
        y = np.empty((ids_N.size, *table.shape[1:]), table.dtype)
        ids, width = np.ascontiguousarray(ids_N, np.int64), math.prod(table.shape[1:])
        run(
            *(ids.size, table.reshape(len(table), width), ids, y.reshape(ids.size, width)),
            least=LEAST // max(1, width),
        )
        return y

    return copy


@add_rows.variant("numba", library="numpy", when=lambda g, ids_N, rows: is_float(g))
def _numba_add() -> Any:
    """Without sorting, the table cleared by all threads."""
    clear, run = parallel(_clear_part), parallel(_add_part)
    if clear is None or run is None:
        return None

    def add(g: Array, ids_N: Array, rows: int) -> Array:
        table = np.empty((rows, *g.shape[1:]), g.dtype)
        clear(table.size, table.reshape(-1), least=LEAST)
        ids, width = np.ascontiguousarray(ids_N, np.int64), math.prod(g.shape[1:])
        run(
            -(-width // BLOCK), g.reshape(ids.size, width), ids, table.reshape(rows, width),
            least=LEAST // (BLOCK * max(1, ids.size)),
        )  # fmt: skip
        return table

    return add


RUN, PIECE = 512, 32
"""Positions that a warp sorts, and sorted ones that a block adds up; as in take_rows.cu."""


@copy_rows.variant("cuda", library="cupy", when=lambda table, ids_N: cuda.takes(table))
def _cuda_copy() -> Any:
    """A warp for each row, in units as large as rows allow."""

    def copy(table: Array, ids_N: Array) -> Array:
        y = cuda.empty(table, (ids_N.size, *table.shape[1:]))
        row_bytes = math.prod(table.shape[1:]) * table.dtype.itemsize
        unit = next(u for u in (16, 4, 2) if _is_multiple(u, row_bytes, table, y))
        ids = namespace(ids_N).ascontiguousarray(ids_N, np.int64)
        blocks = -(-ids.size // (cuda.THREADS // 32)) if row_bytes else 0
        numbers = ids.size, len(table), row_bytes // unit
        cuda.launch("take_rows", f"copy_rows_{unit}", blocks, cuda.THREADS, table, ids, y, *numbers)
        return y

    return copy if cuda.usable() else None


def _is_multiple(unit: int, row_bytes: int, *arrays: Array) -> bool:
    return row_bytes % unit == 0 and all(cuda.address(a) % unit == 0 for a in arrays)


@add_rows.variant(
    "cuda", library="cupy", when=lambda g, ids_N, rows: cuda.known(g) and rows < 1 << 32
)
def _cuda_add() -> Any:
    """Positions sorted by id, keeping their order, pieces of them added up, and then sums of pieces of one id.

    The table is float32, whatever rows are stored as.
    """

    def add(g: Array, ids_N: Array, rows: int) -> Array:
        (g,) = cuda.whole(g)
        table = cuda.empty(g, (rows, *g.shape[1:]), np.float32, zeros=True)
        n, width = ids_N.size, math.prod(g.shape[1:])
        if not n or not table.size:
            return table
        keys, order = _cuda_sorted(ids_N, rows)
        pieces = -(-n // PIECE)
        sums = cuda.empty(g, (pieces, 2, width), np.float32)
        group = 16 // g.dtype.itemsize
        grouped = width % group == 0 and cuda.are_aligned(group, g) and cuda.are_aligned(4, table)
        name = f"add_rows_{g.dtype.name}_{'groups' if grouped else 'single'}"
        sizes = n, rows, width
        cuda.launch("take_rows", name, pieces, cuda.THREADS, g, keys, order, table, sums, *sizes)
        cuda.launch("take_rows", "join_rows", pieces, cuda.THREADS, keys, table, sums, *sizes)
        return table

    return add if cuda.usable() else None


def _cuda_sorted(ids_N: Array, rows: int) -> tuple[Array, Array | None]:
    """The ids in their order as uint32, and where each was; equal ones keep theirs.

    Those outside of the table are `rows`, behind all others: between equal ones they would part them.
    """
    n = ids_N.size
    unsigned = ids_N.reshape(-1).astype(np.uint64)  # negative ones are large
    keys = namespace(ids_N).minimum(unsigned, rows).astype(np.uint32)
    values = None  # null: 0, 1, 2, ...
    runs = -(-n // RUN)
    counts = cuda.empty(keys, (256, runs))
    for shift in range(0, rows.bit_length(), 8):
        to_keys, to_values = cuda.empty(keys, (n,)), cuda.empty(keys, (n,))
        cuda.launch("take_rows", "sort_count", runs, 32, keys, counts, n, runs, shift)
        cuda.launch("take_rows", "sort_scan", 1, 1024, counts, counts.size)
        cuda.launch(
            "take_rows", "sort_move", runs, 32,
            keys, values, counts, to_keys, to_values, n, runs, shift,
        )  # fmt: skip
        keys, values = to_keys, to_values
    return keys, values
