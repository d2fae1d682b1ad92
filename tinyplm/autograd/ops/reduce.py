"""Many values to fewer: sums, means, extremes, over one axis, several, or all."""

from typing import Any

import numpy as np

from ...backend import namespace
from ...kernels.softmax import highest
from ...types import Array, Pullback
from ..engine import op
from .broadcasting import at_least_float32
from .elementwise import quiet

Axis = int | tuple[int, ...] | None


def _axes(x: Array, axis: Axis) -> tuple[int, ...]:
    """The axes reduced over, counted from the front."""
    given: Any = range(x.ndim) if axis is None else (axis,) if np.ndim(axis) == 0 else axis
    return np.lib.array_utils.normalize_axis_tuple(tuple(given), x.ndim)


def _kept(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a reduction that keeps its axes with length one."""
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape))


@op
@at_least_float32
def sum(x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Pullback]:
    """Sum over axes; 0 over an empty one."""
    xp, shape = namespace(x), x.shape
    axes = _axes(x, axis)
    kept = _kept(x, axes)
    return x.sum(axis=axes, keepdims=keepdims), lambda g: xp.broadcast_to(g.reshape(kept), shape)


@op
@at_least_float32
@quiet
def mean(x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Pullback]:
    """Average over axes; NaN over an empty one."""
    xp, shape = namespace(x), x.shape
    axes = _axes(x, axis)
    kept = _kept(x, axes)
    count = np.prod([shape[i] for i in axes], dtype=int).item()
    y = x.sum(axis=axes, keepdims=keepdims) / x.dtype.type(count)
    return y, lambda g: xp.broadcast_to((g / count).reshape(kept), shape)


@op
@at_least_float32
@quiet
def var(
    x: Array, *, axis: Axis = None, keepdims: bool = False, correction: int = 0
) -> tuple[Array, Pullback]:
    """Mean squared deviation from the mean; divided by the count less `correction`."""
    axes = _axes(x, axis)
    kept = _kept(x, axes)
    count = np.prod([x.shape[i] for i in axes], dtype=int).item()
    by = max_of(count - correction, 0)
    deviation = x - x.sum(axis=axes, keepdims=True) / x.dtype.type(count)
    y = (deviation * deviation).sum(axis=axes, keepdims=keepdims) / x.dtype.type(by)
    return y, lambda g: (g * 2 / by if by else g * np.inf).reshape(kept) * deviation


def max_of(a: int, b: int) -> int:
    """The larger of two numbers; the built-in name stands for an op here."""
    return a if a > b else b


def _extreme(x: Array, y: Array, axes: tuple[int, ...], keepdims: bool) -> tuple[Array, Pullback]:
    """Result and pullback of max and min: the places that attain it share the gradient evenly."""
    kept = _kept(x, axes)

    def pullback(g: Array) -> Array:
        attained = (x == y).astype(g.dtype)
        return attained * (g.reshape(kept) / attained.sum(axis=axes, keepdims=True))

    return y if keepdims else y.reshape(
        [n for i, n in enumerate(x.shape) if i not in axes]
    ), pullback


@op
@at_least_float32
def max(x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Pullback]:
    """Largest value over axes; values that tie for it share the gradient evenly. NaN makes both NaN."""
    axes = _axes(x, axis)
    return _extreme(x, x.max(axis=axes, keepdims=True), axes, keepdims)


@op
@at_least_float32
def min(x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Pullback]:
    """Smallest value over axes; values that tie for it share the gradient evenly. NaN makes both NaN."""
    axes = _axes(x, axis)
    return _extreme(x, x.min(axis=axes, keepdims=True), axes, keepdims)


@op
@at_least_float32
@quiet
def logsumexp(x: Array, *, axis: Axis = -1, keepdims: bool = False) -> tuple[Array, Pullback]:
    """Logarithm of the sum of exponentials over axes, without overflow.

    Over nothing, or over minus infinities only, it is minus infinity with a gradient of 0.
    """
    xp = namespace(x)
    axes = _axes(x, axis)
    kept = _kept(x, axes)
    top = highest(x, axes)
    top = xp.where(xp.isfinite(top), top, x.dtype.type(0))
    e = xp.exp(x - top)
    total = e.sum(axis=axes, keepdims=True)
    y = xp.log(total) + top
    e /= xp.where(total == 0, x.dtype.type(1), total)
    if not keepdims:
        y = y.reshape([n for i, n in enumerate(x.shape) if i not in axes])
    return y, lambda g: g.reshape(kept) * e


@op
@at_least_float32
def cumsum(x: Array, *, axis: int = -1) -> tuple[Array, Pullback]:
    """Sum of everything up to and including each place along an axis."""
    xp = namespace(x)
    axis = np.lib.array_utils.normalize_axis_index(axis, x.ndim)

    def pullback(g: Any) -> Any:
        return xp.flip(xp.cumsum(xp.flip(g, axis), axis=axis), axis)

    return xp.cumsum(x, axis=axis), pullback
