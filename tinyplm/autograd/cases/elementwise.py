"""Cases of the ops that work on one value at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Hard, Sample, case, each, is_float_array, kept, nothing
from .draw import Draw

inf, nan = math.inf, math.nan
A = np.array


def _one(low: float, high: float, away: float = 0.0) -> Callable[[Draw], Sample]:
    return lambda d: Sample((d.array(d.shape(), low, high, away=away),))


def _two(
    low: float = -2, high: float = 2, away: float = 0.0, low_b: float | None = None
) -> Callable[[Draw], Sample]:
    """Two operands that broadcast; rarely one of them is a Python number."""
    low_b = low if low_b is None else low_b

    def draw(d: Draw) -> Sample:
        whole = d.shape()
        shapes = [whole, d.broadcastable(whole)]
        if d.boolean():
            shapes = [d.broadcastable(whole), whole]
        a, b = d.array(shapes[0], low, high, away=away), d.array(shapes[1], low_b, high, away=away)
        number = d.integer(0, 7)
        if number == 6:
            return Sample((a, float(d.array((), low_b, high, away=away or 0.1))))
        if number == 7:
            return Sample((float(d.array((), low, high, away=away or 0.1)), b))
        return Sample((a, b))

    return draw


def _size(s: Sample) -> int:
    """Values in the broadcast of all inputs."""
    return int(np.broadcast(*s.inputs).size)


def _arrays(s: Sample) -> int:
    return sum(x.nbytes for x in s.inputs if is_float_array(x))


case(
    "add",
    _two(),
    each(lambda a, b: a - -b),
    nothing,
    Hard(
        "NaN stays NaN",
        (A([nan, 1.0]), A([1.0, 2.0])),
        A([nan, 3.0]),
        (A([1.0, 1.0]), A([1.0, 1.0])),
    ),
    Hard(
        "one operand is stretched",
        (np.zeros((2, 3)), A([[1.0]])),
        np.ones((2, 3)),
        (np.ones((2, 3)), A([[6.0]])),
    ),
    Hard(
        "empty",
        (np.zeros((0, 3)), np.ones((1, 3))),
        np.zeros((0, 3)),
        (np.zeros((0, 3)), np.zeros((1, 3))),
    ),
)
case(
    "subtract",
    _two(),
    each(lambda a, b: math.fsum([a, -b])),
    nothing,
    Hard("equal values give 0", (A([3.0]), A([3.0])), A([0.0]), (A([1.0]), A([-1.0]))),
)
case(
    "multiply",
    _two(),
    each(lambda a, b: a * b),
    lambda s: _arrays(s) if all(map(is_float_array, s.inputs)) else 0,
    Hard("zeros pass the other operand", (A([0.0]), A([5.0])), A([0.0]), (A([5.0]), A([0.0]))),
)
case(
    "divide",
    _two(away=0.3),
    each(lambda a, b: a / b),
    lambda s: (8 * _size(s) + s.inputs[1].nbytes) if is_float_array(s.inputs[1]) else 0,
    Hard("zero over zero is NaN", (A([0.0]), A([0.0])), A([nan]), (A([inf]), A([nan]))),
    Hard(
        "else over zero is infinite",
        (A([1.0, -1.0]), A([0.0, 0.0])),
        A([inf, -inf]),
        (A([inf, inf]), A([-inf, inf])),
    ),
)
case("negate", _one(-3, 3), each(lambda x: 0.0 - x), nothing)


def _power(d: Draw) -> Sample:
    kind = d.integer(0, 3)
    shape = d.shape()
    if kind == 0:  # any base, a whole exponent
        return Sample((d.array(shape, away=0.2), float(d.integer(-3, 4))))
    if kind == 1:
        return Sample((float(d.integer(1, 5)) / 2, d.array(shape)))
    if kind == 2:
        return Sample((d.array(shape, away=0.2), d.integer(0, 3)))
    return Sample((d.array(shape, 0.2, 2.5), d.array(d.broadcastable(shape))))


case(
    "power",
    _power,
    each(math.pow),
    lambda s: kept(0, 1)(s) + (8 * _size(s) if is_float_array(s.inputs[1]) else 0),
    Hard(
        "by a it is 0 where b is 0",
        (A([0.0, 3.0, -2.0]), A([0.0, 0.0, 0.0])),
        A([1.0, 1.0, 1.0]),
        (A([0.0, 0.0, 0.0]), A([0.0, math.log(3), nan])),
    ),
    Hard(
        "by b it is 0 where a is 0 and b is not negative",
        (A([0.0]), A([2.0])),
        A([0.0]),
        (A([0.0]), A([0.0])),
    ),
    Hard(
        "a negative base needs a whole exponent",
        (A([-2.0, -2.0]), 3.0),
        A([-8.0, -8.0]),
        (A([12.0, 12.0]), None),
    ),
    Hard("else NaN", (A([-2.0]), 0.5), A([nan]), (A([nan]), None)),
    Hard(
        "the square root has an infinite gradient at 0", (A([0.0]), 0.5), A([0.0]), (A([inf]), None)
    ),
    Hard("zero to a negative power is infinite", (A([0.0]), -1.0), A([inf]), (A([-inf]), None)),
)
case(
    "exp",
    _one(-3, 3),
    each(math.exp),
    lambda s: kept(0)(s),
    Hard("minus infinity gives 0", (A([-inf, 0.0]),), A([0.0, 1.0]), (A([0.0, 1.0]),)),
    Hard("very large values are infinite without a warning", (A([1e4]),), A([inf]), (A([inf]),)),
    Hard("NaN stays NaN", (A([nan]),), A([nan]), (A([nan]),)),
)
case(
    "log",
    _one(0.1, 5),
    each(math.log),
    kept(0),
    Hard("minus infinity at 0", (A([0.0, 1.0]),), A([-inf, 0.0]), (A([inf, 1.0]),)),
    Hard("NaN below 0, without a warning", (A([-1.0]),), A([nan]), (A([-1.0]),)),
)
case(
    "log1p",
    _one(-0.9, 5),
    each(math.log1p),
    kept(0),
    Hard("exact for small x", (A([1e-20, 0.0]),), A([1e-20, 0.0]), (A([1.0, 1.0]),)),
    Hard("minus infinity at -1", (A([-1.0]),), A([-inf]), (A([inf]),)),
)
case(
    "sqrt",
    _one(0.1, 5),
    each(lambda x: x**0.5),
    kept(0),
    Hard("its gradient is infinite at 0", (A([0.0, 4.0]),), A([0.0, 2.0]), (A([inf, 0.25]),)),
    Hard("NaN below 0", (A([-1.0]),), A([nan]), (A([nan]),)),
)
case(
    "rsqrt",
    _one(0.1, 5),
    each(lambda x: 1 / math.sqrt(x)),
    kept(0),
    Hard("infinite at 0", (A([0.0, 4.0]),), A([inf, 0.5]), (A([-inf, -0.0625]),)),
)
case(
    "abs",
    _one(-2, 2),
    each(math.fabs),
    kept(0),
    Hard(
        "the gradient at 0 is 0",
        (A([0.0, -0.0, -3.0]),),
        A([0.0, 0.0, 3.0]),
        (A([0.0, 0.0, -1.0]),),
    ),
    Hard("NaN stays NaN", (A([nan]),), A([nan]), (A([nan]),)),
)
case(
    "tanh",
    _one(-3, 3),
    each(lambda x: 1 - 2 / (math.exp(2 * x) + 1)),
    kept(0),
    Hard(
        "very large values reach one and pass nothing",
        (A([1e30, -1e30]),),
        A([1.0, -1.0]),
        (A([0.0, 0.0]),),
    ),
)
case(
    "sigmoid",
    _one(-5, 5),
    each(lambda x: 0.5 * (1 + math.tanh(x / 2))),
    kept(0),
    Hard(
        "without overflow for any x",
        (A([1e30, -1e30, 0.0, inf, -inf]),),
        A([1.0, 0.0, 0.5, 1.0, 0.0]),
        (A([0.0, 0.0, 0.25, 0.0, 0.0]),),
    ),
)
case(
    "erf",
    _one(-4, 4),
    each(math.erf),
    kept(0),
    Hard(
        "very large values reach one",
        (A([1e18, -1e18, inf, -inf, 0.0]),),
        A([1.0, -1.0, 1.0, -1.0, 0.0]),
        (A([0.0, 0.0, 0.0, 0.0, 2 / math.sqrt(math.pi)]),),
    ),
    Hard("NaN stays NaN", (A([nan]),), A([nan]), (A([nan]),)),
)


def _extreme(name: str, other: Callable[[float, float], float], high: Any, low: Any) -> None:
    case(
        name,
        _two(),
        each(other),
        _arrays,
        Hard(
            "at a tie each receives half",
            (A([1.0, 1.0]), A([1.0, 1.0])),
            A([1.0, 1.0]),
            (A([0.5, 0.5]), A([0.5, 0.5])),
        ),
        Hard("one is chosen", (A([high]), A([low])), A([high]), (A([1.0]), A([0.0]))),
        Hard("against a number", (A([high, low]), 0.0), A([high, 0.0]), (A([1.0, 0.0]), None)),
        Hard(
            "NaN if either is, and no gradient",
            (A([nan, 1.0]), A([1.0, nan])),
            A([nan, nan]),
            (A([0.0, 0.0]), A([0.0, 0.0])),
        ),
    )


_extreme("maximum", lambda a, b: (a + b + abs(a - b)) / 2, 2.0, -2.0)
_extreme("minimum", lambda a, b: (a + b - abs(a - b)) / 2, -2.0, 2.0)


def _clip(d: Draw) -> Sample:
    low = d.choice([None, -0.5, -1.0])
    high = d.choice([None, 0.75, 1.25])
    return Sample((d.array(d.shape()),), {"low": low, "high": high})


case(
    "clip",
    _clip,
    lambda x, low, high: each(
        lambda v: sorted([-inf if low is None else low, v, inf if high is None else high])[1]
    )(x),
    lambda s: s.inputs[0].size,
    Hard(
        "the gradient passes inside and at the limits",
        (A([-1.0, 0.0, 1.0]),),
        A([-1.0, 0.0, 1.0]),
        (A([1.0, 1.0, 1.0]),),
        {"low": -1.0, "high": 1.0},
    ),
    Hard(
        "and is 0 outside",
        (A([-1.5, 7.0, inf]),),
        A([-1.0, 1.0, 1.0]),
        (A([0.0, 0.0, 0.0]),),
        {"low": -1.0, "high": 1.0},
    ),
    Hard("NaN stays NaN and passes nothing", (A([nan]),), A([nan]), (A([0.0]),), {"low": -1.0}),
)


def _where(d: Draw) -> Sample:
    pair = _two()(d)
    whole = np.broadcast_shapes(*(np.shape(x) for x in pair.inputs))
    return Sample((d.booleans(d.broadcastable(whole)), *pair.inputs))


case(
    "where",
    _where,
    each(lambda c, a, b: [b, a][int(c)]),
    lambda s: s.inputs[0].size,
    Hard(
        "the operand not chosen receives exactly 0",
        (A([True, False]), A([nan, 1.0]), A([2.0, inf])),
        A([nan, inf]),
        (None, A([1.0, 0.0]), A([0.0, 1.0])),
    ),
    Hard(
        "a gradient that is not finite does not leak",
        (A([True, False]), A([1.0, 2.0]), A([3.0, 4.0])),
        A([1.0, 4.0]),
        (None, A([inf, 0.0]), A([0.0, nan])),
        {},
        A([inf, nan]),
    ),
)


def _masked_fill(d: Draw) -> Sample:
    shape = d.shape()
    mask = d.booleans(d.broadcastable(shape))
    return Sample((d.array(shape), mask), {"value": d.choice([0.0, -1.5, 7.0])})


case(
    "masked_fill",
    _masked_fill,
    lambda x, mask, value: each(lambda v, m: value if m else v)(x, mask),
    lambda s: s.inputs[1].size,
    Hard(
        "no gradient passes where mask is true",
        (A([1.0, nan]), A([False, True])),
        A([1.0, -inf]),
        (A([1.0, 0.0]), None),
        {"value": -inf},
    ),
)
