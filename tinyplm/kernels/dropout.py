"""Dropout without a mask: what is dropped is a function of a seed and of the place, computed again when it is needed.

Random bits come from mixing the place with the seed, and not from a generator with a state (the idea of Salmon et al.,
2011, "Parallel Random Numbers: As Easy as 1, 2, 3"). So they can be made in any order, by any thread, inside any loop,
forwards and backwards. Only 32-bit multiplications are needed, of which a processor does many at a time.
"""

from typing import Any

import numpy as np

from ..backend import is_array, namespace
from ..types import Array, Generator
from . import cuda
from .compiled import is_float, parallel
from .registry import Kernel
from .threads import LEAST

_LOW = (1 << 32) - 1
_FIRST, _SECOND, _THIRD = 0x21F0AAAD, 0x735A2D97, 0x31848BAB
"""Found by C. Wellons' search for good mixers ("hash-prospector"). A product with 32 bits fits into 63."""


def mixed(seed: Any, seed_high: Any, place: Any, place_high: Any) -> Any:
    """32 random bits from a seed and a place of 32 low and 31 high bits each.

    Each step is one to one. The two keys depend on the seed alone: the compiler takes them out of a loop.
    """
    first = _stirred(seed ^ _stirred(seed_high ^ _FIRST))
    second = _stirred((first + seed_high) & _LOW)
    x = place ^ first
    x = ((x ^ (x >> 16)) * _FIRST) & _LOW
    x = x ^ (x >> 15) ^ second ^ place_high
    x = (x * _SECOND) & _LOW
    x = ((x ^ (x >> 15)) * _THIRD) & _LOW
    return x ^ (x >> 14)


def _stirred(x: Any) -> Any:
    x = ((x ^ (x >> 16)) * _FIRST) & _LOW
    x = ((x ^ (x >> 15)) * _SECOND) & _LOW
    return x ^ (x >> 15)


def random32(seed: Any, index: Any) -> Any:
    """32 random bits, as a number in [0, 2^32), for a seed and a place, both in [0, 2^63).

    The same in plain Python, with an array of int64 for the places, and in compiled loops, where it need not be named
    as a helper.
    """
    return mixed(seed & _LOW, seed >> 32, index & _LOW, index >> 32)


def kept(seed: Any, index: Any, threshold: Any) -> Any:
    """Whether the value at a place stays; also in compiled loops."""
    return random32(seed, index) >= threshold


SEEDS = 1 << 63
"""Seeds are below this."""


def drawn_seed(rng: Generator) -> Any:
    """A seed: a number, or an array of the card that holds one, so that a step can be repeated there with another."""
    seed = rng.integers(SEEDS)
    return seed if is_array(seed) else int(seed)


def threshold(rate: float) -> int:
    """What `kept` wants for a share to be dropped. With a rate of 1 one value in 2^32 would be kept: see scale."""
    return min(round(rate * 2.0**32), _LOW)


def scale(rate: float) -> float:
    """What is kept is multiplied with this."""
    return 0.0 if rate == 1 else 1 / (1 - rate)


@Kernel
def dropout_forward(x: Array, rate: float, seed: Any) -> Array:
    """Each value 0 with probability rate, else divided by 1 - rate; the place is counted in row-major order.

    What is dropped is 0 even if it was not finite. With a rate of 1 all is.
    """
    xp, nothing = namespace(x), x.dtype.type(0)
    if rate == 1:
        return xp.zeros(x.shape, x.dtype)
    keep = kept(seed, xp.arange(x.size, dtype=np.int64), threshold(rate)).reshape(x.shape)
    return xp.where(keep, x, nothing) * x.dtype.type(scale(rate))


@Kernel
def dropout_pullback(g: Array, rate: float, seed: Any) -> Array:
    """The same places of the gradient: it is linear."""
    return dropout_forward.definition(g, rate, seed)


def _part(
    team: Any, part: int, start: int, stop: int,
    x: Array, seed: int, threshold: int, scale: Any, y: Array,
) -> None:  # fmt: skip
    nothing = x.dtype.type(0)
    while start < stop:
        high, low = start & ~_LOW, start & _LOW  # high is the same throughout the inner loop
        size = min(stop - start, _LOW + 1 - low)
        from_here, to = x[start : start + size], y[start : start + size]
        for i in range(size):
            stays = kept(seed, high | ((low + i) & _LOW), threshold)
            to[i] = from_here[i] * scale if stays else nothing
        start += size


def _takes(x: Array, rate: float, seed: int) -> bool:
    return is_float(x) and 0 < rate < 1


@dropout_forward.variant("numba", library="numpy", when=_takes)
@dropout_pullback.variant("numba", library="numpy", when=_takes)
def _numba() -> Any:
    """One pass, and no memory but the result."""
    run = parallel(_part)
    if run is None:
        return None

    def drop(x: Array, rate: float, seed: int) -> Array:
        y = np.empty_like(x)
        numbers = seed, threshold(rate), x.dtype.type(scale(rate))
        run(x.size, x.reshape(-1), *numbers, y.reshape(-1), least=LEAST)
        return y

    return drop


def _cuda_takes(x: Array, rate: float, seed: Any) -> bool:
    return cuda.known(x) and 0 < rate < 1


@dropout_forward.variant("cuda", library="cupy", when=_cuda_takes)
@dropout_pullback.variant("cuda", library="cupy", when=_cuda_takes)
def _cuda() -> Any:
    """The same bits: only whole numbers are mixed, and there is one rounding, of a product in float32."""

    def drop(x: Array, rate: float, seed: Any) -> Array:
        (x,) = cuda.whole(x)
        y = cuda.empty(x, x.shape)
        numbers = *cuda.seed_arguments(seed), np.uint32(threshold(rate)), float(scale(rate))
        cuda.each_value("dropout", f"dropout_{x.dtype.name}", (x, y), *numbers)
        return y

    return drop if cuda.usable() else None
