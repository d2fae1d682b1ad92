"""Ops that draw."""

from typing import Any

from ...errors import ConfigError
from ...kernels.dropout import drawn_seed, dropout_forward, dropout_pullback
from ...types import Array, Generator, Pullback
from ..engine import op
from .broadcasting import kernels_round


@op
def dropout(x: Array, *, rate: float, rng: Generator | None) -> tuple[Array, Pullback]:
    """Each value set to 0 with probability rate, the others divided by 1 - rate (Srivastava et al., 2014).

    Without rng, or with rate 0, x passes as it is. The pullback keeps no array: one number drawn from rng says what is
    dropped. A rate of 1 gives zeros. What is dropped is 0 even if it was not finite. The same generator state drops
    the same values.

    Raises:
        ConfigError: rate is outside [0, 1].
    """
    check_rate(rate)
    if rng is None or rate == 0:
        return x, lambda g: g
    return _dropped(x, rate=rate, seed=drawn_seed(rng))


@kernels_round
def _dropped(x: Array, *, rate: float, seed: Any) -> tuple[Array, Pullback]:
    return dropout_forward(x, rate, seed), lambda g: dropout_pullback(g, rate, seed)


def check_rate(rate: float) -> None:
    """Refuse a rate that is no probability."""
    if not 0 <= rate <= 1:
        raise ConfigError(f"dropout rate is {rate}, but it must be between 0 and 1.")
