"""GELU, exact and by tanh, over arrays of any shape."""

import math
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from .compiled import exp32, is_single, jit
from .erf import erf
from .registry import Kernel
from .threads import LEAST, share

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


def _forward_loop(x: Array, y: Array) -> None:
    # 0.5 (1 + tanh(u)) is the sigmoid of 2 u: one exponential, and no cancellation for negative x
    one, c, root = np.float32(1), np.float32(CUBIC), np.float32(-2 * ROOT_2_OVER_PI)
    for i in range(x.size):
        v = x[i]
        y[i] = v / (one + exp32(root * v * (one + c * v * v)))


def _pullback_loop(g: Array, x: Array, out: Array) -> None:
    # With e = exp(-2 u) and s = 1 / (1 + e), s (1 - s) is s s e, without the cancellation of 1 - s. Beyond 9 the
    # slope is 0 or 1 to the last bit, and e must stay finite.
    one, c, root = np.float32(1), np.float32(CUBIC), np.float32(2 * ROOT_2_OVER_PI)
    three, far = np.float32(3), np.float32(9)
    for i in range(x.size):
        v = x[i]
        w = min(max(v, -far), far) if v == v else v
        e = exp32(-root * w * (one + c * w * w))
        s = one / (one + e)
        out[i] = g[i] * (s + w * s * s * e * root * (one + three * c * w * w))


@gelu_tanh_forward.variant("numba", library="numpy", when=is_single)
def _numba_forward() -> Any:
    """One pass instead of seven."""
    loop = jit(_forward_loop, exp32)
    if loop is None:
        return None

    def forward(x: Array) -> Array:
        y = np.empty_like(x)
        flat_x, flat_y = x.reshape(-1), y.reshape(-1)
        share(x.size, lambda i, j: loop(flat_x[i:j], flat_y[i:j]), least=LEAST)
        return y

    return forward


@gelu_tanh_pullback.variant("numba", library="numpy", when=is_single)
def _numba_pullback() -> Any:
    """One pass instead of fourteen."""
    loop = jit(_pullback_loop, exp32)
    if loop is None:
        return None

    def pullback(g: Array, x: Array) -> Array:
        out = np.empty_like(x)
        flat = g.reshape(-1), x.reshape(-1), out.reshape(-1)
        share(x.size, lambda i, j: loop(*(a[i:j] for a in flat)), least=LEAST)
        return out

    return pullback
