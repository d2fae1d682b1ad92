"""Ops that draw."""

import numpy as np

from ...backend import namespace
from ...errors import ConfigError
from ...types import Array, Generator, Pullback
from ..engine import op


@op
def dropout(x: Array, *, rate: float, rng: Generator | None) -> tuple[Array, Pullback]:
    """Each value set to 0 with probability rate, the others divided by 1 - rate (Srivastava et al., 2014).

    Without rng, or with rate 0, x passes as it is. The pullback keeps one byte a value. A rate of 1 gives zeros.

    Raises:
        ConfigError: rate is outside [0, 1].
    """
    check_rate(rate)
    if rng is None or rate == 0:
        return x, lambda g: g
    xp = namespace(x)
    keep = xp.asarray(rng.random(x.shape, dtype=np.float32) >= rate)
    scale = x.dtype.type(0 if rate == 1 else 1 / (1 - rate))
    return x * keep.astype(x.dtype) * scale, lambda g: g * keep.astype(g.dtype) * scale


def check_rate(rate: float) -> None:
    """Refuse a rate that is no probability."""
    if not 0 <= rate <= 1:
        raise ConfigError(f"dropout rate is {rate}, but it must be between 0 and 1.")
