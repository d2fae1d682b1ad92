"""One value at a time: arithmetic, powers, exponentials, choices. Operands broadcast as in NumPy.

Values outside a function's domain give NaN or infinity without a warning; `detect_anomaly` names where.
"""

from typing import Any

import numpy as np

from ...backend import namespace
from ...kernels.erf import erf as _erf
from ...types import Array, Pullback
from ..engine import op
from .broadcasting import (
    alike,
    at_least_float32,
    is_half,
    kernels_round,
    like,
    same_precision,
    unbroadcast,
)

quiet = np.errstate(all="ignore")


@op
def add(a: Array, b: Any) -> tuple[Array, Pullback]:
    """Sum of two operands."""
    if b.__class__ is float or b.__class__ is int:
        if hasattr(a, "dtype") and a.dtype.kind == "f" and a.dtype.itemsize > 2:
            return a + b, _to_first  # halves round b first
    elif alike(a, b) and a.dtype.kind == "f":
        return a + b, _to_both
    return _add(a, b)


def _to_both(g: Array) -> tuple[Array, Array]:
    return g, g


def _to_first(g: Array) -> Array:
    return g


@kernels_round  # CuPy's own
def _add(a: Array, b: Array) -> tuple[Array, Pullback]:
    y = same_precision(a + b, a, b)
    like_a, like_b = like(a), like(b)
    return y, lambda g: (unbroadcast(g, like_a), unbroadcast(g, like_b))


@op
@kernels_round
def subtract(a: Array, b: Array) -> tuple[Array, Pullback]:
    """First operand minus the second."""
    y = same_precision(a - b, a, b)
    like_a, like_b = like(a), like(b)
    return y, lambda g: (unbroadcast(g, like_a), lambda: unbroadcast(-g, like_b))


@op
@kernels_round
def multiply(a: Array, b: Array) -> tuple[Array, Pullback]:
    """Product, element by element."""
    y = same_precision(a * b, a, b)
    like_a, like_b = like(a), like(b)
    if like_b is None:
        return y, lambda g: (unbroadcast(g * b, like_a), None)
    if like_a is None:
        return y, lambda g: (None, unbroadcast(g * a, like_b))
    return y, lambda g: (lambda: unbroadcast(g * b, like_a), lambda: unbroadcast(g * a, like_b))


@op
@at_least_float32
@quiet
def divide(a: Array, b: Array) -> tuple[Array, Pullback]:
    """First operand over the second; zero over zero is NaN, else over zero is infinite."""
    y = same_precision(a / b, a, b)
    like_a, like_b = like(a), like(b)
    if like_b is None:
        return y, lambda g: (unbroadcast(g / b, like_a), None)
    return y, lambda g: (
        lambda: unbroadcast(g / b, like_a),
        lambda: unbroadcast(-g * y / b, like_b),
    )


@op
def negate(x: Array) -> tuple[Array, Pullback]:
    """Minus x."""
    return -x, lambda g: -g


@op
@at_least_float32
@quiet
def power(a: Array, b: Array) -> tuple[Array, Pullback]:
    """A to the power b; a negative base needs a whole exponent, else NaN.

    Gradient:
        By a: b a^(b - 1), and 0 where b is 0. By b: a^b log a, and 0 where a is 0 and b is not negative.
    """
    xp = namespace(a if hasattr(a, "dtype") else b)
    y = same_precision(a**b, a, b)
    like_a, like_b, dtype = like(a), like(b), y.dtype

    def by_base(g: Array) -> Array:
        slope = xp.where(xp.equal(b, 0), dtype.type(0), b * a ** (b - 1))
        return unbroadcast(g * slope.astype(dtype), like_a)

    if like_b is None:
        return y, lambda g: (by_base(g), None)

    def by_exponent(g: Array) -> Array:
        at_zero = (a == 0) & (b >= 0)
        slope = xp.where(at_zero, 0 * y, y * xp.log(xp.where(at_zero, 1, a)).astype(y.dtype))
        return unbroadcast(g * slope, like_b)

    return y, lambda g: (
        None if like_a is None else lambda: by_base(g),
        None if like_b is None else lambda: by_exponent(g),
    )


@op
@at_least_float32
@quiet
def exp(x: Array) -> tuple[Array, Pullback]:
    """E to the power x."""
    y = namespace(x).exp(x)
    return y, lambda g: g * y


@op
@at_least_float32
@quiet
def log(x: Array) -> tuple[Array, Pullback]:
    """Natural logarithm; minus infinity at 0."""
    return namespace(x).log(x), lambda g: g / x


@op
@at_least_float32
@quiet
def log1p(x: Array) -> tuple[Array, Pullback]:
    """Natural logarithm of 1 + x, exact for small x."""
    return namespace(x).log1p(x), lambda g: g / (1 + x)


@op
@at_least_float32
@quiet
def sqrt(x: Array) -> tuple[Array, Pullback]:
    """Square root; its gradient is infinite at 0."""
    y = namespace(x).sqrt(x)
    return y, lambda g: g / (2 * y)


@op
@at_least_float32
@quiet
def rsqrt(x: Array) -> tuple[Array, Pullback]:
    """One over the square root; infinite at 0."""
    y = 1 / namespace(x).sqrt(x)
    return y, lambda g: g * (-0.5 * y * y * y)


@op
def abs(x: Array) -> tuple[Array, Pullback]:
    """Absolute value; the gradient at 0 is 0."""
    xp = namespace(x)
    return xp.abs(x), lambda g: g * xp.sign(x)


@op
@at_least_float32
def tanh(x: Array) -> tuple[Array, Pullback]:
    """Hyperbolic tangent."""
    y = namespace(x).tanh(x)
    return y, lambda g: g * (1 - y * y)


@op
@at_least_float32
def sigmoid(x: Array) -> tuple[Array, Pullback]:
    """1 / (1 + exp(-x)), without overflow for any x."""
    y = logistic(x)
    return y, lambda g: g * y * (1 - y)


def logistic(x: Array) -> Array:
    """The sigmoid of an array: the exponential is only taken of what is not positive."""
    xp = namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1 / (1 + e), e / (1 + e))


@op
@at_least_float32
def erf(x: Array) -> tuple[Array, Pullback]:
    """Error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    xp = namespace(x)
    return _erf(x), lambda g: g * (2 / np.sqrt(np.pi)).item() * xp.exp(-x * x)


def _chosen(g: Array, ahead: Array, tied: Array, to: Any) -> Any:
    """Gradient of the operand that was chosen; at a tie each operand gets half."""
    return unbroadcast(g * (ahead + 0.5 * tied).astype(g.dtype), to)


@op
@at_least_float32
def maximum(a: Array, b: Array) -> tuple[Array, Pullback]:
    """The larger of two operands; at a tie each receives half of the gradient.

    NaN where either is, and no gradient passes there.
    """
    y = same_precision(namespace(a).maximum(a, b), a, b)
    like_a, like_b = like(a), like(b)
    return y, lambda g: (
        lambda: _chosen(g, a > b, a == b, like_a),
        lambda: _chosen(g, b > a, a == b, like_b),
    )


@op
@at_least_float32
def minimum(a: Array, b: Array) -> tuple[Array, Pullback]:
    """The smaller of two operands; at a tie each receives half of the gradient.

    NaN where either is, and no gradient passes there.
    """
    y = same_precision(namespace(a).minimum(a, b), a, b)
    like_a, like_b = like(a), like(b)
    return y, lambda g: (
        lambda: _chosen(g, a < b, a == b, like_a),
        lambda: _chosen(g, b < a, a == b, like_b),
    )


@op
def clip(
    x: Array, *, low: float | None = None, high: float | None = None
) -> tuple[Array, Pullback]:
    """X limited to [low, high]; the gradient passes inside and at the limits, and is 0 outside and for NaN."""
    xp = namespace(x)
    inside = xp.ones(x.shape, bool)
    y = x
    if low is not None:
        low = x.dtype.type(low)
        inside &= x >= low
        y = xp.maximum(y, low)
    if high is not None:
        high = x.dtype.type(high)
        inside &= x <= high
        y = xp.minimum(y, high)
    return y, lambda g: g * inside.astype(g.dtype)


@op
def where(condition: Array, a: Array, b: Array) -> tuple[Array, Pullback]:
    """A where condition is true, else b; the operand not chosen receives exactly 0."""
    xp = next((xp for xp in map(namespace, (a, b, condition)) if xp is not np), np)
    condition = xp.asarray(condition, dtype=bool)
    a, b = _in_precision_of(a, b), _in_precision_of(b, a)
    y = same_precision(_select(condition, a, b), a, b)
    like_a, like_b = like(a), like(b)

    def pullback(g: Array) -> tuple[None, Pullback, Pullback]:
        nothing = g.dtype.type(0)
        return (
            None,
            lambda: unbroadcast(_select(condition, g, nothing), like_a),
            lambda: unbroadcast(_select(condition, nothing, g), like_b),
        )

    return y, pullback


def _select(condition: Array, a: Any, b: Any) -> Array:
    """A where condition is true, else b; bfloat16 stays bfloat16, which CuPy's `where` makes float32."""
    y = namespace(condition).where(condition, a, b)
    one = getattr(a, "dtype", None)
    return y.astype(one) if one == getattr(b, "dtype", None) != y.dtype and is_half(one) else y


def _in_precision_of(x: Any, other: Any) -> Any:
    """A number as a scalar of the other operand's dtype; anything else as it is."""
    return x if hasattr(x, "dtype") or not hasattr(other, "dtype") else other.dtype.type(x)


@op
def masked_fill(x: Array, mask: Array, *, value: float) -> tuple[Array, Pullback]:
    """X with value wherever mask is true; no gradient passes there. The mask broadcasts to x."""
    xp = namespace(x)
    mask = xp.broadcast_to(xp.asarray(mask, dtype=bool), x.shape)
    y = _select(mask, x.dtype.type(value), x)
    return y, lambda g: _select(mask, g.dtype.type(0), g)
