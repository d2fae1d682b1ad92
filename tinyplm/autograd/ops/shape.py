"""The same values in another arrangement. Nothing is computed; results are views where NumPy's are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backend import namespace
from ...errors import ShapeError
from ...kernels import cuda
from ...types import Array, Pullback
from ..engine import Tensor, op
from .broadcasting import like, same_precision, unbroadcast

FEW = 8
"""Arrays that CuPy joins without a table of their addresses; a table is sent up, which no graph allows."""


@op
def reshape(x: Array, *, shape: int | Sequence[int]) -> tuple[Array, Pullback]:
    """The values in row-major order under another shape; one length may be -1."""
    before = x.shape
    return x.reshape(shape), lambda g: g.reshape(before)


@op
def transpose(x: Array, *, axes: Sequence[int] | None = None) -> tuple[Array, Pullback]:
    """Axes in another order; reversed when none is given."""
    if axes is None:
        return x.transpose(), lambda g: g.transpose()
    back = np.argsort(np.lib.array_utils.normalize_axis_tuple(axes, x.ndim)).tolist()
    return x.transpose(axes), lambda g: g.transpose(back)


@op
def broadcast_to(x: Array, *, shape: Sequence[int]) -> tuple[Array, Pullback]:
    """X repeated along new axes and along axes of length one."""
    like_x = like(x)
    return namespace(x).broadcast_to(x, shape), lambda g: unbroadcast(g, like_x)


def concatenate(tensors: Sequence[Tensor | Array], *, axis: int = 0) -> Tensor:
    """Tensors joined along an axis; the other lengths must agree."""
    return _concatenate(*tensors, axis=axis)


@op
def _concatenate(*arrays: Array, axis: int) -> tuple[Array, Pullback]:
    """Arrays joined along an axis."""
    xp = namespace(arrays[0]) if arrays else np
    y = same_precision(_joined(arrays, axis), *arrays)
    ends = np.cumsum([a.shape[axis] for a in arrays])[:-1].tolist()
    dtypes = [a.dtype for a in arrays]

    def pullback(g: Array) -> tuple[Array, ...]:
        parts = xp.split(g, ends, axis=axis)
        return tuple(p.astype(d, copy=False) for p, d in zip(parts, dtypes, strict=True))

    return y, pullback


def stack(tensors: Sequence[Tensor | Array], *, axis: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis."""
    return _stack(*tensors, axis=axis)


@op
def _stack(*arrays: Array, axis: int) -> tuple[Array, Pullback]:
    """Arrays of one shape side by side along a new axis."""
    xp = namespace(arrays[0]) if arrays else np
    dtypes = [a.dtype for a in arrays]

    def pullback(g: Array) -> tuple[Array, ...]:
        parts = xp.moveaxis(g, axis, 0)
        return tuple(p.astype(d, copy=False) for p, d in zip(parts, dtypes, strict=True))

    if xp is np or len(arrays) <= FEW:
        y = xp.stack(arrays, axis=axis)
    else:
        y = _joined([xp.expand_dims(a, axis) for a in arrays], axis)
    return same_precision(y, *arrays), pullback


def _joined(arrays: Sequence[Array], axis: int) -> Array:
    """Arrays joined along an axis; many on a card are copied one by one."""
    xp = namespace(arrays[0]) if arrays else np
    if xp is np or len(arrays) <= FEW:
        return xp.concatenate(arrays, axis=axis)
    turned = [xp.moveaxis(a, axis, 0) for a in arrays]
    if len({a.shape[1:] for a in turned}) > 1:
        return xp.concatenate(arrays, axis=axis)  # which says what does not fit
    shape = list(arrays[0].shape)
    shape[axis] = sum(map(len, turned))
    y = cuda.empty(arrays[0], tuple(shape), np.result_type(*(a.dtype for a in arrays)))
    rows, at = xp.moveaxis(y, axis, 0), 0
    for a in turned:
        rows[at : at + len(a)] = a
        at += len(a)
    return y


@op
def split(x: Array, *, parts: int | Sequence[int], axis: int = -1) -> tuple[Any, Pullback]:
    """X cut along an axis into a tuple: that many equal parts, or parts of the lengths given."""
    xp, length = namespace(x), x.shape[axis]
    if isinstance(parts, int):
        if parts < 1 or length % parts:
            raise ShapeError(
                f"split: an axis of length {length} cannot be cut into {parts} equal parts; give a number that "
                "divides it, or a list of lengths."
            )
        parts = [length // parts] * parts
    if np.sum(parts) != length or np.min(parts, initial=0) < 0:
        raise ShapeError(
            f"split: lengths {list(parts)} do not add up to the {length} of axis {axis}."
        )
    y = tuple(xp.split(x, np.cumsum(parts)[:-1].tolist(), axis=axis))
    shapes, dtype = [p.shape for p in y], x.dtype

    def pullback(gs: tuple[Array | None, ...]) -> Array:
        filled = [xp.zeros(s, dtype) if g is None else g for g, s in zip(gs, shapes, strict=True)]
        return _joined(filled, axis)

    return y, pullback


@op
def pad(
    x: Array, *, widths: Sequence[tuple[int, int]], value: float = 0.0
) -> tuple[Array, Pullback]:
    """X with a constant added before and after: one pair of widths per axis."""
    if len(widths) != x.ndim:
        raise ShapeError(
            f"pad: {len(widths)} pairs of widths for {x.ndim} axes; give one pair per axis."
        )
    y = namespace(x).pad(x, widths, constant_values=value)
    inner = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape, strict=True))
    return y, lambda g: g[inner]


@op
def flip(x: Array, *, axis: int | tuple[int, ...] | None = None) -> tuple[Array, Pullback]:
    """X with the order along axes reversed; along all when none is given."""
    xp = namespace(x)
    return xp.flip(x, axis), lambda g: xp.flip(g, axis)
