"""Cases of the reductions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...types import Array
from .case import Hard, Sample, case, kept, nothing
from .draw import Draw

inf, nan = math.inf, math.nan
A = np.array


def _reducing(*, empty: bool = True, **more: Callable[[Draw], Any]) -> Callable[[Draw], Sample]:
    def draw(d: Draw) -> Sample:
        x = d.array(d.shape(empty=empty))
        attributes = {"axis": d.axes(x.ndim), "keepdims": d.boolean()}
        return Sample((x,), attributes | {k: v(d) for k, v in more.items()})

    return draw


def _by_lists(function: Callable[..., float]) -> Callable[..., Array]:
    """An oracle that gives the values of each group, as a list, to a function of one list."""

    def oracle(x: Array, axis: Any = None, keepdims: bool = False, **more: Any) -> Array:
        given = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
        axes = {i % x.ndim for i in given} if x.ndim else set()
        left = [n for i, n in enumerate(x.shape) if i not in axes]
        groups: dict[Any, list[float]] = {place: [] for place in np.ndindex(*left)}
        for place in np.ndindex(*x.shape):
            groups[tuple(n for i, n in enumerate(place) if i not in axes)].append(float(x[place]))
        y = A([function(group, **more) for group in groups.values()], float).reshape(left)
        return np.expand_dims(y, sorted(axes)) if keepdims else y

    return oracle


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else nan


def _var(values: Sequence[float], correction: int) -> float:
    if not values:
        return nan
    middle, by = _mean(values), max(len(values) - correction, 0)
    total = math.fsum((v - middle) ** 2 for v in values)
    return total / by if by else nan if total == 0 else inf


def _log_sum_exp(values: Sequence[float]) -> float:
    top = max(values, default=-inf)
    return -inf if top == -inf else top + math.log(math.fsum(math.exp(v - top) for v in values))


def _several(d: Draw) -> Sample:
    """Variance of at least two values over some axes, so that it has a derivative."""
    x = d.array((d.integer(2, 4), *d.shape(0, 2, empty=False)))
    axis = d.choice([None, 0, (0,), tuple(range(x.ndim))])
    return Sample((x,), {"axis": axis, "keepdims": d.boolean(), "correction": d.integer(0, 1)})


ROWS = {"axis": -1}
case(
    "sum",
    _reducing(),
    _by_lists(math.fsum),
    nothing,
    Hard("0 over an empty axis", (np.zeros((2, 0)),), A([0.0, 0.0]), (np.zeros((2, 0)),), ROWS),
    Hard(
        "over no axis it is the value itself",
        (A([1.0, 2.0]),),
        A([1.0, 2.0]),
        (A([1.0, 1.0]),),
        {"axis": ()},
    ),
    Hard("of one number", (A(3.0),), A(3.0), (A(1.0),)),
)
case(
    "mean",
    _reducing(),
    _by_lists(_mean),
    nothing,
    Hard(
        "NaN over an empty axis, without a warning",
        (np.zeros((2, 0)),),
        A([nan, nan]),
        (np.zeros((2, 0)),),
        ROWS,
    ),
    Hard("of one number", (A([[3.0]]),), A(3.0), (A([[1.0]]),)),
)
case(
    "var",
    _several,
    _by_lists(_var),
    kept(0),
    Hard("of one value it is 0", (A([[2.0], [5.0]]),), A([0.0, 0.0]), (A([[0.0], [0.0]]),), ROWS),
    Hard("of equal values it is 0, far from 0 too", (np.full(4, 65536.0),), A(0.0), (np.zeros(4),)),
    Hard(
        "of fewer values than correction asks for it is NaN",
        (A([[2.0]]),),
        A([nan]),
        (A([[nan]]),),
        {"axis": -1, "correction": 1},
    ),
    Hard("NaN over an empty axis", (np.zeros((2, 0)),), A([nan, nan]), (np.zeros((2, 0)),), ROWS),
)


def _extreme(name: str, oracle: Callable[[Sequence[float]], float], sign: float) -> None:
    case(
        name,
        _reducing(empty=False),
        _by_lists(oracle),
        lambda s: s.inputs[0].nbytes + 8 * s.inputs[0].max(axis=s.attributes["axis"]).size,
        Hard(
            "values that tie share the gradient evenly",
            (A([[2.0, 0.0, 2.0], [1.0, 1.0, 1.0]]) * sign,),
            A([2.0, 1.0]) * sign,
            (A([[0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]]),),
            ROWS,
        ),
        Hard("of one value", (A([[4.0]]),), A([4.0]), (A([[1.0]]),), ROWS),
        Hard(
            "an infinity is the extreme", (A([1.0, inf * sign]),), A(inf * sign), (A([0.0, 1.0]),)
        ),
        Hard(
            "NaN makes result and gradient NaN",
            (A([[1.0, nan], [sign, 0.0]]),),
            A([nan, sign]),
            (A([[nan, nan], [1.0, 0.0]]),),
            ROWS,
        ),
    )


_extreme("max", lambda v: sorted(v)[-1], 1.0)
_extreme("min", lambda v: sorted(v)[0], -1.0)
case(
    "logsumexp",
    _reducing(),
    _by_lists(_log_sum_exp),
    kept(0),
    Hard("without overflow", (A([1000.0, 1000.0]),), A(1000 + math.log(2)), (A([0.5, 0.5]),)),
    Hard(
        "over minus infinities only it is minus infinity with a gradient of 0",
        (A([[-inf, -inf], [0.0, -inf]]),),
        A([-inf, 0.0]),
        (A([[0.0, 0.0], [1.0, 0.0]]),),
    ),
    Hard("over nothing too", (np.zeros((2, 0)),), A([-inf, -inf]), (np.zeros((2, 0)),)),
    Hard("of one value it is the value", (A([[-7.0]]),), A([-7.0]), (A([[1.0]]),)),
)


def _cumsum(d: Draw) -> Sample:
    x = d.array(d.shape(1))
    return Sample((x,), {"axis": d.axis(x.ndim)})


def _running(x: Array, axis: int) -> Array:
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        until = list(place)
        until[axis] = slice(0, place[axis] + 1)
        y[place] = math.fsum(x[tuple(until)].tolist())
    return y


case(
    "cumsum",
    _cumsum,
    _running,
    nothing,
    Hard("empty", (np.zeros(0),), np.zeros(0), (np.zeros(0),)),
    Hard(
        "the first place counts in all",
        (A([1.0, 2.0, 3.0]),),
        A([1.0, 3.0, 6.0]),
        (A([3.0, 2.0, 1.0]),),
    ),
)
