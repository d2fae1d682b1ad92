"""Picking values by position, and adding to them by position. Repeated positions add up in the gradient."""

from typing import Any

import numpy as np

from ...backend import is_array, namespace
from ...kernels.take_rows import add_rows, copy_rows
from ...types import Array, Pullback
from ..engine import Tensor, op
from .broadcasting import at_least_float32, is_half, like, unbroadcast


@op
def index(x: Array, *, key: Any) -> tuple[Array, Pullback]:
    """x[key] with any key that NumPy takes: numbers, slices, new axes, arrays of integers or booleans."""
    parts = key if isinstance(key, tuple) else (key,)
    shape, dtype, xp = x.shape, x.dtype, namespace(x)
    parts = tuple(_plain(part, xp) for part in parts)
    simple = not any(is_array(part) for part in parts)

    def pullback(g: Array) -> Array:
        if simple:
            gx = xp.zeros(shape, dtype)
            gx[parts] = g
            return gx
        return _added_up(shape, parts, g)

    return x[parts], pullback


def _added_up(shape: tuple[int, ...], key: Any, g: Array) -> Array:
    """Zeros with g added at a key; half precision is added up in float32 and rounded once."""
    xp = namespace(g)
    total = xp.zeros(shape, np.float32 if is_half(g.dtype) else g.dtype)
    xp.add.at(total, key, g.astype(total.dtype, copy=False))
    return total.astype(g.dtype, copy=False)


def _plain(part: Any, xp: Any) -> Any:
    if isinstance(part, Tensor):
        return part.array
    return xp.asarray(part) if isinstance(part, list | tuple | range | np.ndarray) else part


@op
def take_rows(table: Array, ids: Array) -> tuple[Array, Pullback]:
    """Rows of a table by number: an embedding.

    Shapes:
        table: (V, ...); ids: any shape, integers in [0, V); result: ids.shape + table.shape[1:].

    Gradient:
        Row v receives the sum over every place where ids is v, in the order of the places.

    Ids that lie on a card are not looked at: one that is outside gives NaN.

    Raises:
        IndexError: an id is negative or not below V.
    """
    shape = table.shape
    ids = ids if is_array(ids) else np.asarray(ids)
    _check_ids(ids, shape[0])
    ids = namespace(table).asarray(ids)
    y = copy_rows(table, ids.reshape(-1)).reshape((*ids.shape, *shape[1:]))
    return y, lambda g: add_rows(g.reshape(ids.size, *shape[1:]), ids.reshape(-1), shape[0])


def _check_ids(ids: Array, rows: int) -> None:
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, not {ids.dtype}")
    if namespace(ids) is np and ids.size and (ids.min() < 0 or ids.max() >= rows):
        at = np.argwhere((ids < 0) | (ids >= rows))[0].tolist()
        raise IndexError(f"ids contains {ids[tuple(at)]} at {at}, outside [0, {rows})")


def _along(indices: Array, axis: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The key that picks indices along an axis and stays in place on the others, as broadcast arrays."""
    xp = namespace(indices)
    key = list(xp.ogrid[tuple(slice(n) for n in shape)])
    key[axis] = indices
    return tuple(key)


@op
def take_along_axis(x: Array, indices: Array, *, axis: int = -1) -> tuple[Array, Pullback]:
    """For each place, the value of x at that place but at `indices` along one axis (numpy.take_along_axis).

    Negative indices count from the end. Repeated indices add up in the gradient.
    """
    xp = namespace(x)
    indices = xp.asarray(indices)
    y = xp.take_along_axis(x, indices, axis=axis)
    shape, axis = x.shape, axis % x.ndim

    def pullback(g: Array) -> Array:
        others = tuple(n if i != axis else 1 for i, n in enumerate(g.shape))
        full = list(_along(xp.broadcast_to(indices, g.shape), axis, others))
        for i, n in enumerate(shape):
            if i != axis and n == 1:  # x was broadcast along this axis
                full[i] = xp.zeros((1,) * len(shape), int)
        return _added_up(shape, tuple(full), g)

    return y, pullback


@op
@at_least_float32
def scatter_add(
    x: Array, indices: Array, updates: Array, *, axis: int = 0
) -> tuple[Array, Pullback]:
    """X with updates added at `indices` along an axis; repeated indices add up.

    Shapes:
        updates: as x except along axis; indices: integers that broadcast to the shape of updates.
    """
    xp = namespace(x)
    like_updates = like(updates)
    axis = np.lib.array_utils.normalize_axis_index(axis, x.ndim)
    indices = xp.broadcast_to(xp.asarray(indices), updates.shape)
    others = tuple(n if i != axis else 1 for i, n in enumerate(updates.shape))
    if x.ndim != updates.ndim or any(
        n != m for i, (n, m) in enumerate(zip(x.shape, updates.shape, strict=True)) if i != axis
    ):
        raise ValueError(f"updates must have the shape of x except along axis {axis}")
    if updates.dtype != x.dtype:
        raise TypeError("x and updates must have one dtype; convert one of them")
    key = _along(indices, axis, others)
    y = x.copy()
    xp.add.at(y, key, updates)
    return y, lambda g: (g, None, unbroadcast(g[key], like_updates))
