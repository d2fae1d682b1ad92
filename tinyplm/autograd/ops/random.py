"""Ops that draw."""

import numpy as np

from ...backend import namespace
from ...errors import ConfigError
from ...types import Array, Generator, Pullback
from ..engine import op
from .broadcasting import at_least_float32


@op
def dropout(x: Array, *, rate: float, rng: Generator | None) -> tuple[Array, Pullback]:
    """Each value set to 0 with probability rate, the others divided by 1 - rate (Srivastava et al., 2014).

    Without rng, or with rate 0, x passes as it is. The pullback keeps one byte a value. A rate of 1 gives zeros. What
    is dropped is 0 even if it was not finite. The same generator state drops the same values.

    Raises:
        ConfigError: rate is outside [0, 1].
    """
    check_rate(rate)
    if rng is None or rate == 0:
        return x, lambda g: g
    return _dropped(x, rate, rng)


@at_least_float32
def _dropped(x: Array, rate: float, rng: Generator) -> tuple[Array, Pullback]:
    xp, nothing = namespace(x), x.dtype.type(0)
    keep = xp.asarray(rng.random(x.shape, dtype=np.float32) >= rate)
    scale = x.dtype.type(0 if rate == 1 else 1 / (1 - rate))
    return xp.where(keep, x, nothing) * scale, lambda g: xp.where(keep, g, nothing) * scale


def check_rate(rate: float) -> None:
    """Refuse a rate that is no probability."""
    if not 0 <= rate <= 1:
        raise ConfigError(f"dropout rate is {rate}, but it must be between 0 and 1.")
