"""What the Numba variants share: how they are compiled, and an exponential that vectorises.

Numba has no vector math library, so `math.exp` in a loop costs ten copies of the data; `exp32` costs one and a half.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..types import Array

_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}  # NaN and infinity keep their meaning

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # nine bits, so that n LN2_HIGH is exact
LN2_LOW = np.float32(-2.12194440e-4)


def jit(loop: Callable[..., Any], *helpers: Callable[..., Any]) -> Callable[..., Any] | None:
    """The loop compiled by Numba, kept on disk for the next time; None where Numba is not installed.

    Args:
        loop: a function of arrays and numbers that fills its outputs.
        helpers: plain functions that it calls.
    """
    try:
        import numba
        from numba.extending import register_jitable
    except ImportError:
        return None
    for helper in helpers:
        if helper not in _registered:
            register_jitable(inline="always")(helper)
            _registered.add(helper)
    return numba.njit(nogil=True, cache=True, fastmath=_FASTMATH, error_model="numpy")(loop)


_registered: set[Any] = set()


def is_single(*arrays: Array) -> bool:
    """Whether all are float32 in row-major order without gaps, as the compiled loops want them."""
    return all(a.dtype.char == "f" and a.flags.c_contiguous for a in arrays)


def exp32(x: Any) -> Any:
    """E to the power x of one float32, without a branch; relative error at most 1.3e-7 in [-87, 88].

    x is split as n log 2 + r with |r| <= log(2) / 2; a polynomial of degree 7 gives e^r (coefficients of Cephes'
    expf), and n goes into the exponent's bits. Below -87 the result is 0, above 88 it is infinite; NaN stays NaN.
    """
    one = np.float32(1)
    y = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(y * LOG2_E + np.float32(0.5))
    r = y - n * LN2_HIGH - n * LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + one
    bits = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))
    e = p * bits.view(np.float32)
    e = np.float32(0) if x < np.float32(-87) else e
    e = np.float32(np.inf) if x > np.float32(88) else e
    return e if x == x else x
