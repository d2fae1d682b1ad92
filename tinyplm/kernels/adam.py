"""One Adam update of one parameter, in place."""

import math
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from .compiled import is_single, jit
from .registry import Kernel
from .threads import LEAST, share


@Kernel
def adamw_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    shrink: float,
    decay: float,
    beta_1: float,
    beta_2: float,
    step_size: float,
    root_correction: float,
    eps: float,
) -> None:
    """Update p and its moments m and v from the gradient g.

    g is multiplied by shrink and p by decay first; then m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2 and
    p -= step_size m / (sqrt(v) / root_correction + eps).
    """
    xp = namespace(p)
    kind = m.dtype.type
    g = g * kind(shrink)
    m *= kind(beta_1)
    v *= kind(beta_2)
    m += g * kind(1 - beta_1)
    np.multiply(g, g, out=g) if xp is np else xp.multiply(g, g, out=g)
    g *= kind(1 - beta_2)
    v += g
    xp.sqrt(v, out=g)
    g *= kind(1 / root_correction)
    g += kind(eps)
    xp.divide(m, g, out=g)
    g *= kind(step_size)
    if decay != 1:
        p *= kind(decay)
    p -= g


def _loop(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    shrink: Any,
    decay: Any,
    b_1: Any,
    b_2: Any,
    rest_1: Any,
    rest_2: Any,
    step_size: Any,
    root: Any,
    eps: Any,
) -> None:
    for i in range(p.size):
        s = g[i] * shrink
        mean = b_1 * m[i] + rest_1 * s
        square = b_2 * v[i] + rest_2 * s * s
        m[i] = mean
        v[i] = square
        p[i] = p[i] * decay - step_size * mean / (np.float32(math.sqrt(square)) * root + eps)


@adamw_update.variant("numba", library="numpy", when=lambda p, g, m, v, *_: is_single(p, g, m, v))
def _numba() -> Any:
    """One pass over parameter, gradient and moments instead of a dozen."""
    loop = jit(_loop)
    if loop is None:
        return None

    def update(
        p: Array,
        g: Array,
        m: Array,
        v: Array,
        shrink: float,
        decay: float,
        beta_1: float,
        beta_2: float,
        step_size: float,
        root_correction: float,
        eps: float,
    ) -> None:
        factors = (
            *(shrink, decay, beta_1, beta_2, 1 - beta_1, 1 - beta_2),
            *(step_size, 1 / root_correction, eps),
        )
        flat = p.reshape(-1), g.reshape(-1), m.reshape(-1), v.reshape(-1)
        numbers = [np.float32(x) for x in factors]
        share(p.size, lambda i, j: loop(*(a[i:j] for a in flat), *numbers), least=LEAST)

    return update
