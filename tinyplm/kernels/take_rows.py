"""The gradient of an embedding: rows added up by number."""

import numpy as np

from ..backend import namespace
from ..types import Array
from .registry import Kernel


@Kernel
def add_rows(g_NC: Array, ids_N: Array, rows: int) -> Array:
    """A table of that many rows; row v is the sum of the rows of g whose id is v.

    Rows are sorted by id, keeping their order, and each run is added up: the same sum in the same order every time.
    """
    xp = namespace(g_NC)
    table = xp.zeros((rows, *g_NC.shape[1:]), g_NC.dtype)
    if ids_N.size == 0:
        return table
    if xp is not np:
        xp.add.at(table, ids_N, g_NC)
        return table
    order = np.argsort(ids_N, kind="stable")
    present, starts = np.unique(ids_N[order], return_index=True)
    wide = np.float32 if g_NC.dtype.itemsize == 2 else g_NC.dtype
    table[present] = np.add.reduceat(g_NC[order], starts, axis=0, dtype=wide)
    return table
