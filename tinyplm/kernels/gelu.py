"""GELU, exact and by tanh, over arrays of any shape."""

import functools
import math
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import exponential_within, is_float, parallel
from .erf import erf
from .registry import Kernel
from .threads import LEAST

ROOT_HALF = math.sqrt(0.5)
ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715


@Kernel
def gelu_forward(x: Array) -> Array:
    """X Phi(x), with Phi(x) = (1 + erf(x / sqrt(2))) / 2."""
    return x * (0.5 * (1 + erf(x * ROOT_HALF)))


@Kernel
def gelu_pullback(g: Array, x: Array) -> Array:
    """G (Phi(x) + x phi(x)), with phi the normal density."""
    xp = namespace(x)
    density = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return g * (0.5 * (1 + erf(x * ROOT_HALF)) + x * density)


@Kernel
def gelu_tanh_forward(x: Array) -> Array:
    """0.5 x (1 + tanh(u)), with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    t = _tanh(x)
    t += 1
    t *= x
    t *= 0.5
    return t


@Kernel
def gelu_tanh_pullback(g: Array, x: Array) -> Array:
    """G times the derivative: with t = tanh(u), 0.5 (1 + t) + 0.5 x (1 - t^2) u'."""
    t = _tanh(x)
    slope = 1 - t * t
    slope *= x  # 0 for very large x, and stays 0, where x^3 would be infinite
    cubic = slope * x
    cubic *= x
    cubic *= 3 * CUBIC * ROOT_2_OVER_PI
    slope *= ROOT_2_OVER_PI
    slope += cubic
    slope += t
    slope += 1
    slope *= g
    slope *= 0.5
    return slope


def _tanh(x: Array) -> Array:
    u = x * x
    u *= CUBIC * ROOT_2_OVER_PI
    u += ROOT_2_OVER_PI
    u *= x
    return namespace(x).tanh(u)


def gelu_tanh(v: Any) -> Any:
    """The definition of gelu_tanh_forward for one value, for compiled loops.

    0.5 (1 + tanh(u)) is the sigmoid of 2 u: one exponential, and no cancellation for negative v.
    """
    kind = type(v)
    one, c, root = kind(1), kind(CUBIC), kind(-2 * ROOT_2_OVER_PI)
    e = exponential_within(root * v * (one + c * v * v))
    e = kind(math.inf) if v < kind(-20) else e  # else it would have an end, and v none
    return v / (one + e)


def gelu_tanh_slope(v: Any) -> Any:
    """Derivative of gelu_tanh.

    With e = exp(-2 u) and s = 1 / (1 + e), s (1 - s) is s s e, without the cancellation of 1 - s. Beyond 9 the slope
    is 0 or 1 to the last bit, and e must stay finite.
    """
    kind = type(v)
    one, c, root = kind(1), kind(CUBIC), kind(2 * ROOT_2_OVER_PI)
    three, far = kind(3), kind(9)
    w = min(max(v, -far), far) if v == v else v
    e = exponential_within(-root * w * (one + c * w * w))
    s = one / (one + e)
    return s + w * s * s * e * root * (one + three * c * w * w)


def gelu(v: Any) -> Any:
    """The definition of gelu_forward for one value, for compiled loops."""
    return v * _below(v, _bell(v))


def gelu_slope(v: Any) -> Any:
    """Derivative of gelu, from one exponential."""
    bell = _bell(v)
    return _below(v, bell) + v * bell * type(v)(1 / math.sqrt(2 * math.pi))


def _is_single(kind: Any) -> Any:
    """Whether this is float32: a constant to the compiler, which drops the other branch."""
    return kind(1) + kind(1e-9) == kind(1)


def _bell(v: Any) -> Any:
    """exp(-v^2 / 2); 0 where its square would be."""
    kind = type(v)
    far = kind(13) if _is_single(kind) else kind(37.5)
    e = exponential_within(kind(-0.5) * v * v)
    return kind(0) if abs(v) > far else e


def _below(v: Any, bell: Any) -> Any:
    """The normal distribution function, without a branch; bell is exp(-v^2 / 2).

    Beyond |v| there is bell r(|v|) of it. As a polynomial in q = (|v| - k) / (|v| + k), which lies between -1 and 1,
    (|v| + k) r(|v|) needs few terms (coefficients by interpolation at Chebyshev's points in 50 digits). The error is
    at most 2e-7 in float32, 4e-16 in float64, of which the exponential's is most.
    """
    kind = type(v)
    a = abs(v)
    if _is_single(kind):
        u = kind(1) / (a + kind(2.5))
        q = kind(1) - kind(5) * u
        p = kind(-1.546226771e-04)
        p = p * q + kind(-3.075970129e-04)
        p = p * q + kind(6.821774082e-04)
        p = p * q + kind(2.520320875e-03)
        p = p * q + kind(-1.600201712e-03)
        p = p * q + kind(-1.638514163e-02)
        p = p * q + kind(9.235757417e-03)
        p = p * q + kind(1.319868796e-01)
        p = p * q + kind(-4.336920025e-01)
        p = p * q + kind(7.066566614e-01)
    else:
        u = kind(1) / (a + kind(5))
        q = kind(1) - kind(10) * u
        p = kind(-1.2363537586218987e-10)
        p = p * q + kind(1.857952912471312e-09)
        p = p * q + kind(7.66476332563744e-09)
        p = p * q + kind(-9.581299335597396e-09)
        p = p * q + kind(-6.61088737799882e-08)
        p = p * q + kind(4.255189137871885e-08)
        p = p * q + kind(4.3340567485369004e-07)
        p = p * q + kind(-3.3676054054503373e-07)
        p = p * q + kind(-2.7694643737982355e-06)
        p = p * q + kind(3.98093955746599e-06)
        p = p * q + kind(1.6681298183006114e-05)
        p = p * q + kind(-4.976281639579197e-05)
        p = p * q + kind(-5.937574990732637e-05)
        p = p * q + kind(0.0005448990635277339)
        p = p * q + kind(-0.0007978693950409005)
        p = p * q + kind(-0.0029933767701889285)
        p = p * q + kind(0.02079506679957628)
        p = p * q + kind(-0.06911863870634068)
        p = p * q + kind(0.1650203661703987)
        p = p * q + kind(-0.3135331566713034)
        p = p * q + kind(0.4953056159699762)
        p = p * q + kind(-0.6653825028900567)
        p = p * q + kind(0.769193049750063)
    beyond = bell * u * p
    return beyond if v < kind(0) else kind(1) - beyond


HELPERS = gelu_tanh, gelu_tanh_slope, gelu, gelu_slope, _is_single, _bell, _below


def _gelu_part(team: Any, part: int, start: int, stop: int, x: Array, y: Array) -> None:
    x, y = x[start:stop], y[start:stop]  # from 0: LLVM knows then that no index is negative
    for i in range(x.size):
        y[i] = gelu(x[i])


def _gelu_slope_part(
    team: Any, part: int, start: int, stop: int, g: Array, x: Array, out: Array
) -> None:
    g, x, out = g[start:stop], x[start:stop], out[start:stop]
    for i in range(x.size):
        out[i] = g[i] * gelu_slope(x[i])


def _gelu_tanh_part(team: Any, part: int, start: int, stop: int, x: Array, y: Array) -> None:
    x, y = x[start:stop], y[start:stop]  # from 0: LLVM knows then that no index is negative
    for i in range(x.size):
        y[i] = gelu_tanh(x[i])


def _gelu_tanh_slope_part(
    team: Any, part: int, start: int, stop: int, g: Array, x: Array, out: Array
) -> None:
    g, x, out = g[start:stop], x[start:stop], out[start:stop]
    for i in range(x.size):
        out[i] = g[i] * gelu_tanh_slope(x[i])


def _elementwise(body: Any) -> Any:
    """One pass over arrays of one shape."""
    run = parallel(body, *HELPERS)
    if run is None:
        return None

    def compute(*arrays: Array) -> Array:
        y = np.empty_like(arrays[0])
        run(y.size, *(a.reshape(-1) for a in arrays), y.reshape(-1), least=LEAST)
        return y

    return compute


for _kernel, _body in (
    (gelu_forward, _gelu_part),
    (gelu_pullback, _gelu_slope_part),
    (gelu_tanh_forward, _gelu_tanh_part),
    (gelu_tanh_pullback, _gelu_tanh_slope_part),
):
    _kernel.variant("numba", library="numpy", when=is_float)(functools.partial(_elementwise, _body))


def _cuda(name: str) -> Any:
    """Groups of 16 bytes, one for each thread."""

    def compute(*arrays: Array) -> Array:
        y = cuda.empty(arrays[0], arrays[0].shape)
        cuda.each_value("gelu", f"{name}_{y.dtype.name}", (*cuda.whole(*arrays), y))
        return y

    return compute if cuda.usable() else None


for _kernel in (gelu_forward, gelu_pullback, gelu_tanh_forward, gelu_tanh_pullback):
    _kernel.variant("cuda", library="cupy", when=cuda.known)(functools.partial(_cuda, _kernel.name))
