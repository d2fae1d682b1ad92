"""Cases of the nonlinearities, softmax and dropout."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels.dropout import random32
from ...types import Array
from .case import Hard, Sample, Seed, case, each, kept, nothing
from .draw import Draw

inf, nan = math.inf, math.nan
A = np.array


def _one(low: float, high: float) -> Callable[[Draw], Sample]:
    return lambda d: Sample((d.array(d.shape(), low, high),))


case(
    "relu",
    _one(-2, 2),
    each(lambda x: x if x > 0 else 0.0),
    kept(0),
    Hard(
        "the gradient at 0 is 0", (A([0.0, -1.0, 2.0]),), A([0.0, 0.0, 2.0]), (A([0.0, 0.0, 1.0]),)
    ),
    Hard("NaN stays NaN and passes nothing", (A([nan]),), A([nan]), (A([0.0]),)),
)
case(
    "gelu",
    _one(-4, 4),
    each(lambda x: x * (1 - math.erfc(x / math.sqrt(2)) / 2)),
    kept(0),
    Hard(
        "very large values pass, very small ones vanish",
        (A([1e30, -1e30, 0.0]),),
        A([1e30, 0.0, 0.0]),
        (A([1.0, 0.0, 0.5]),),
    ),
    Hard("NaN stays NaN", (A([nan]),), A([nan]), (A([nan]),)),
)


def _by_sigmoid(x: float) -> float:
    """The tanh of the definition, written with an exponential."""
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + math.exp(-2 * u))


case(
    "gelu_tanh",
    _one(-4, 4),
    each(_by_sigmoid),
    kept(0),
    Hard(
        "very large values pass, very small ones vanish",
        (A([1e30, -1e30, 0.0]),),
        A([1e30, 0.0, 0.0]),
        (A([1.0, 0.0, 0.5]),),
    ),
    Hard("NaN stays NaN", (A([nan]),), A([nan]), (A([nan]),)),
)
case(
    "silu",
    _one(-5, 5),
    each(lambda x: x / (1 + math.exp(-x))),
    kept(0, 0),
    Hard(
        "very large values pass, very small ones vanish",
        (A([1e30, -1e30, 0.0]),),
        A([1e30, 0.0, 0.0]),
        (A([1.0, 0.0, 0.5]),),
    ),
    Hard("NaN stays NaN", (A([nan]),), A([nan]), (A([nan]),)),
)


def _rows(d: Draw) -> Sample:
    x = d.array(d.shape(1), -4, 4)
    if x.size and d.rarely(3):  # some values may not be chosen at all
        x = np.where(d.booleans(x.shape) & d.booleans(x.shape), x.dtype.type(-inf), x)
    return Sample((x,), {"axis": d.axis(x.ndim)})


def _finite_rows(d: Draw) -> Sample:
    x = d.array(d.shape(1, empty=False), -4, 4)
    return Sample((x,), {"axis": d.axis(x.ndim)})


def _shares(values: list[float]) -> list[float]:
    total = math.fsum(map(math.exp, values))
    return [math.exp(v) / total if total else 0.0 for v in values]


def along(function: Callable[[list[float]], list[float]]) -> Callable[..., Array]:
    """An oracle that applies a function of lists to every row along an axis."""

    def oracle(x: Array, axis: int) -> Array:
        x = np.moveaxis(x, axis, -1)
        y = np.zeros(x.shape)
        for place in np.ndindex(*x.shape[:-1]):
            y[place] = function(x[place].tolist())
        return np.moveaxis(y, -1, axis)

    return oracle


case(
    "softmax",
    _rows,
    along(_shares),
    kept(0),
    Hard(
        "of minus infinities only the result is 0, and so is the gradient",
        (A([[-inf, -inf], [0.0, -inf]]),),
        A([[0.0, 0.0], [1.0, 0.0]]),
        (A([[0.0, 0.0], [0.0, 0.0]]),),
        {},
        A([[1.0, 2.0], [3.0, 4.0]]),
    ),
    Hard(
        "without overflow",
        (A([1000.0, 1000.0]),),
        A([0.5, 0.5]),
        (A([-0.25, 0.25]),),
        {},
        A([0.0, 1.0]),
    ),
    Hard("of one value it is 1 and passes nothing", (A([[3.0]]),), A([[1.0]]), (A([[0.0]]),)),
    Hard(
        "NaN makes its row NaN",
        (A([[nan, 0.0], [0.0, 0.0]]),),
        A([[nan, nan], [0.5, 0.5]]),
        (A([[nan, nan], [0.0, 0.0]]),),
    ),
    Hard(
        "over an empty axis it is empty", (np.zeros((2, 0)),), np.zeros((2, 0)), (np.zeros((2, 0)),)
    ),
)
case(
    "log_softmax",
    _finite_rows,
    along(lambda values: [-math.log(math.fsum(math.exp(w - v) for w in values)) for v in values]),
    kept(0),
    Hard(
        "exact where the softmax underflows",
        (A([0.0, -2000.0]),),
        A([0.0, -2000.0]),
        (A([-1.0, 1.0]),),
        {},
        A([0.0, 1.0]),
    ),
    Hard(
        "without overflow",
        (A([1000.0, 1000.0]),),
        A([-math.log(2), -math.log(2)]),
        (A([-0.5, 0.5]),),
        {},
        A([0.0, 1.0]),
    ),
    Hard(
        "minus infinity where x is",
        (A([0.0, -inf]),),
        A([0.0, -inf]),
        (A([0.0, 0.0]),),
        {},
        A([1.0, 0.0]),
    ),
    Hard(
        "of minus infinities only the result is minus infinity, and the softmax in its gradient 0",
        (A([-inf, -inf]),),
        A([-inf, -inf]),
        (A([1.0, 2.0]),),
        {},
        A([1.0, 2.0]),
    ),
    Hard("of one value it is 0 and passes nothing", (A([[3.0]]),), A([[0.0]]), (A([[0.0]]),)),
    Hard(
        "over an empty axis it is empty", (np.zeros((2, 0)),), np.zeros((2, 0)), (np.zeros((2, 0)),)
    ),
)


def _dropout(d: Draw) -> Sample:
    rng = d.choice([Seed(d.integer(0, 99)), None])
    return Sample((d.array(d.shape()),), {"rate": d.choice([0.5, 0.0, 0.1, 0.9]), "rng": rng})


def _dropped(x: Array, rate: float, rng: Any) -> Array:
    """Value by value, with the same bits for each place: kept where they are at least the rate."""
    if rng is None or rate == 0:
        return x
    seed = int(rng.integers(1 << 63))
    dropped = [
        v / (1 - rate) if random32(seed, place) / 2**32 >= rate else 0.0
        for place, v in enumerate(x.ravel().tolist())
    ]
    return A(dropped, float).reshape(x.shape)


case(
    "dropout",
    _dropout,
    _dropped,
    nothing,
    Hard(
        "a rate of 1 gives zeros, of what is not finite too",
        (A([1.0, inf, nan]),),
        np.zeros(3),
        (np.zeros(3),),
        {"rate": 1.0, "rng": Seed(0)},
    ),
    Hard(
        "without rng x passes as it is",
        (A([1.0, 2.0]),),
        A([1.0, 2.0]),
        (A([1.0, 1.0]),),
        {"rate": 0.5, "rng": None},
    ),
    Hard(
        "with rate 0 x passes as it is",
        (A([1.0, 2.0]),),
        A([1.0, 2.0]),
        (A([1.0, 1.0]),),
        {"rate": 0.0, "rng": Seed(0)},
    ),
)
