"""Softmax along one axis, and its pullback."""

import numpy as np

from ..backend import namespace
from ..types import Array
from .registry import Kernel


@Kernel
def softmax_forward(x: Array, axis: int) -> Array:
    """Exponentials along axis over their sum; 0 where everything along the axis is minus infinity."""
    xp = namespace(x)
    top = x.max(axis=axis, keepdims=True, initial=-np.inf).astype(x.dtype, copy=False)
    e = x - xp.where(top == -np.inf, x.dtype.type(0), top)
    xp.exp(e, out=e)
    total = e.sum(axis=axis, keepdims=True)
    e /= xp.where(total == 0, x.dtype.type(1), total)
    return e


@Kernel
def softmax_pullback(g: Array, y: Array, axis: int) -> Array:
    """Y (g - sum(g y))."""
    gy = g * y
    gy -= y * gy.sum(axis=axis, keepdims=True)
    return gy
