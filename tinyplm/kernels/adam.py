"""One Adam update of one parameter, in place."""

import numpy as np

from ..backend import namespace
from ..types import Array
from .registry import Kernel


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
