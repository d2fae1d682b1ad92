"""Step number to learning rate: pure functions. Steps count from 0; `warmup` and `total` are numbers of steps.

Warm-up rises in equal parts: step s of w has (s + 1) / (w + 1) of the peak, so no update is wasted on a rate of 0.
"""

import math
from collections.abc import Callable


def constant(
    step: int, *, peak: float, warmup: int = 0, total: int = 0, floor: float = 0.0
) -> float:
    """The peak, once warmed up."""
    return peak * (step + 1) / (warmup + 1) if step < warmup else peak


def linear(step: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Straight from the peak down to the floor at `total`."""
    if step < warmup:
        return constant(step, peak=peak, warmup=warmup)
    return floor + (peak - floor) * (1 - _progress(step, warmup, total))


def cosine(step: int, *, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """Half a cosine from the peak down to the floor at `total` (Loshchilov & Hutter, 2017, arXiv:1608.03983)."""
    if step < warmup:
        return constant(step, peak=peak, warmup=warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total)))


def inverse_square_root(
    step: int, *, peak: float, warmup: int, total: int = 0, floor: float = 0.0
) -> float:
    """The peak times sqrt(w / s) after w steps of warm-up (Vaswani et al., 2017, eq. 3)."""
    if step < warmup:
        return constant(step, peak=peak, warmup=warmup)
    scale = max(1, warmup)
    return max(floor, peak * math.sqrt(scale / (step + scale - warmup)))


def _progress(step: int, warmup: int, total: int) -> float:
    """How far the way down is, from 0 to 1."""
    return min(1.0, (step - warmup) / max(1, total - warmup))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "inverse-square-root": inverse_square_root,
}
"""Schedules by the names that the command line uses."""
