"""What every op that broadcasts or rounds needs: gradients in the shape and dtype of their input.

Half precision is stored, never computed with. On the CPU an op widens its inputs to float32 and rounds its results
once (`at_least_float32`). On a card kernels do that themselves, value by value, so that no wide copy exists: ops that
leave all arithmetic to kernels pass halves on as they are there (`kernels_round`). What is float32 there though inputs
are halves are sums over many rows: losses and statistics, and gradients of weights, which a leaf keeps so.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import namespace
from ...errors import DtypeError
from ...kernels import cuda
from ...kernels.matmul import sum_rows
from ...types import Pullback
from ..messages import is_half as is_half  # for other ops too

Like = tuple[tuple[int, ...], np.dtype[Any]] | None
"""Shape and dtype of an input that can have a gradient; None for numbers and integers."""


def like(x: Any) -> Like:
    """What a pullback must remember of an input to shape its gradient."""
    if not hasattr(x, "dtype") or x.dtype.kind in "iub":
        return None
    return x.shape, x.dtype


def alike(a: Any, b: Any) -> bool:
    """Whether two operands have one shape and dtype, so that nothing is broadcast or converted."""
    try:
        return a.shape == b.shape and a.dtype is b.dtype and a.dtype.kind not in "iub"
    except AttributeError:  # a number
        return False


def unbroadcast(g: Any, to: Like) -> Any:
    """The gradient of an input that was broadcast: summed over the axes that were stretched.

    On a card the float32 gradient of a half stays float32.
    """
    if to is None:
        return None
    shape, dtype = to
    if g.shape != shape:
        extra = g.ndim - len(shape)
        axes = (*range(extra), *(i + extra for i, n in enumerate(shape) if n != g.shape[i + extra]))
        g = _sum(g, axes).reshape(shape)
    if g.dtype == dtype or (g.dtype == np.float32 and is_half(dtype) and namespace(g) is not np):
        return g
    return g.astype(dtype)


def _sum(g: Any, axes: tuple[int, ...]) -> Any:
    """The sum over axes, in float32 at least; over the first ones by a kernel of a card."""
    if namespace(g) is np or axes != tuple(range(len(axes))) or not cuda.usable():
        return g.sum(axis=axes, dtype=np.float32 if is_half(g.dtype) else None)
    rows, columns = (math.prod(part) for part in (g.shape[: len(axes)], g.shape[len(axes) :]))
    return sum_rows(g.reshape(rows, columns))


def same_precision(result: Any, *inputs: Any) -> Any:
    """The result, if its dtype is that of a float input; mixing integers or two half precisions is refused.

    NumPy would answer int64 + float32 with float64, which turns a model to double precision unnoticed.
    """
    dtypes = [x.dtype for x in inputs if hasattr(x, "dtype")]
    floats = [d for d in dtypes if d.kind not in "iub"]
    if floats and result.dtype.kind not in "iub" and result.dtype not in floats:
        raise DtypeError(
            f"operands of dtype {' and '.join(str(d) for d in dtypes)} would give {result.dtype}; convert one of "
            f"them first, for example array.astype('{floats[0]}')."
        )
    return result


def at_least_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute an op on half precision in float32 and round once, forward and backward."""
    return _with_halves(function, _rounded)


def kernels_round(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `at_least_float32`; but arrays of a card, all of one half precision, are left to the kernels.

    For ops whose arithmetic on a card is all in kernels that take halves, in whatever layout. Gradients come to the
    pullback in the precision of the result that they are of.
    """
    return _with_halves(function, _by_kernels)


def _with_halves(
    function: Callable[..., Any], compute: Callable[..., tuple[Any, Pullback]]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def wide(*arrays: Any, **attributes: Any) -> Any:
        for a in arrays:
            if hasattr(a, "dtype") and a.dtype.itemsize == 2 and a.dtype.kind in "fV":
                return compute(function, arrays, attributes)
        return function(*arrays, **attributes)

    return wide


def _by_kernels(
    function: Callable[..., Any], arrays: tuple[Any, ...], attributes: dict[str, Any]
) -> tuple[Any, Pullback]:
    """On a card whose kernels can be used, without widening anything."""
    floats = [a for a in arrays if like(a)]
    alone = len({a.dtype for a in floats}) == 1 and not any(type(a) in (int, float) for a in arrays)
    alone = alone and all(a.size for a in floats)  # what is empty is left to definitions
    if not alone or namespace(floats[0]) is np or not cuda.usable():
        return _rounded(function, arrays, attributes)
    result, pullback = function(*arrays, **attributes)
    many = isinstance(result, tuple)
    dtypes = [r.dtype for r in result] if many else result.dtype

    def rounded(g: Any, dtype: Any) -> Any:
        return g if g is None or g.dtype == dtype else g.astype(dtype)

    def narrowed(g: Any) -> Any:
        return pullback(tuple(map(rounded, g, dtypes)) if many else rounded(g, dtypes))

    return result, narrowed


def _rounded(
    function: Callable[..., Any], arrays: tuple[Any, ...], attributes: dict[str, Any]
) -> tuple[Any, Pullback]:
    half = [hasattr(a, "dtype") and is_half(a.dtype) for a in arrays]
    dtypes = {a.dtype for a, h in zip(arrays, half, strict=True) if h}
    singles = [a for a, h in zip(arrays, half, strict=True) if like(a) and not h]
    if len(dtypes) > 1:
        raise DtypeError(
            f"operands of dtype {' and '.join(map(str, dtypes))} are mixed; convert one."
        )
    (dtype,) = dtypes
    result, pullback = function(
        *(a.astype(np.float32) if h else a for a, h in zip(arrays, half, strict=True)), **attributes
    )
    to = {np.dtype(np.float32): dtype} if not singles else {}

    def narrow(x: Any) -> Any:
        return x.astype(to.get(x.dtype, x.dtype), copy=False) if hasattr(x, "dtype") else x

    def widen(g: Any) -> Any:
        return g.astype(np.float32) if g is not None and is_half(g.dtype) else g

    to_half = [dtype if h else None for h in half]

    def rounded(g: Any) -> Any:
        given = pullback(tuple(map(widen, g)) if isinstance(g, tuple) else widen(g))
        if not isinstance(given, tuple):
            return _rounded_gradient(given, to_half[0])
        return tuple(map(_rounded_gradient, given, to_half[: len(given)]))

    return tuple(map(narrow, result)) if isinstance(result, tuple) else narrow(result), rounded


def _rounded_gradient(gradient: Any, dtype: Any) -> Any:
    if dtype is None or gradient is None:
        return gradient
    if callable(gradient):  # only made if it is wanted
        return lambda: _rounded_gradient(gradient(), dtype)
    return gradient.astype(dtype)
