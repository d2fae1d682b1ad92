"""Rows of a table by number, which is an embedding, and its gradient: rows added up by number."""

import math
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
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
    """
    xp = namespace(g)
    table = xp.zeros((rows, *g.shape[1:]), g.dtype)
    if ids_N.size == 0:
        return table
    if xp is not np:
        xp.add.at(table, ids_N, g)
        return table
    order = np.argsort(ids_N, kind="stable")
    present, starts = np.unique(ids_N[order], return_index=True)
    wide = np.float32 if g.dtype.itemsize == 2 else g.dtype
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
