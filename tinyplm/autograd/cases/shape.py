"""Cases of the ops that rearrange."""

import itertools
from typing import Any

import numpy as np

from ...types import Array
from .case import Hard, Sample, case, nothing
from .draw import Draw, count

A = np.array


def _reshape(d: Draw) -> Sample:
    x = d.array(d.shape())
    left = x.size
    shape = [1] * d.integer(0, 2) if left else list(x.shape)[::-1]
    divisor = d.choice([n for n in range(1, left + 1) if left % n == 0]) if left > 1 else left or 1
    if left:
        shape += [divisor, left // divisor]
        if d.boolean():
            shape[d.integer(0, len(shape) - 1)] = -1
            known = -count(shape)
            shape = shape if known and left % known == 0 else [-1]
    return Sample((x,), {"shape": tuple(shape)})


def _reshaped(x: Array, shape: Any) -> Array:
    values = [x[place] for place in np.ndindex(*x.shape)]
    y = np.zeros(np.empty(len(values)).reshape(shape).shape)
    for place, value in zip(np.ndindex(*y.shape), values, strict=True):
        y[place] = value
    return y


case(
    "reshape",
    _reshape,
    _reshaped,
    nothing,
    Hard("a single value to no axes", (A([[5.0]]),), A(5.0), (A([[1.0]]),), {"shape": ()}),
    Hard(
        "of a transposed array, in row-major order",
        (A([[1.0, 2.0], [3.0, 4.0]]).T,),
        A([1.0, 3.0, 2.0, 4.0]),
        (A([[1.0, 2.0], [3.0, 4.0]]),),
        {"shape": 4},
        A([1.0, 2.0, 3.0, 4.0]),
    ),
)


def _transpose(d: Draw) -> Sample:
    x = d.array(d.shape(0, 4, side=3))
    axes = tuple(i - x.ndim * d.integer(0, 1) for i in d.order(x.ndim))
    return Sample((x,), {"axes": d.choice([None, axes])})


def _transposed(x: Array, axes: Any) -> Array:
    order = range(x.ndim)[::-1] if axes is None else [i % x.ndim for i in axes]
    y = np.zeros([x.shape[i] for i in order])
    for place in np.ndindex(*x.shape):
        y[tuple(place[i] for i in order)] = x[place]
    return y


case(
    "transpose",
    _transpose,
    _transposed,
    nothing,
    Hard("of no axes it is the value", (A(2.0),), A(2.0), (A(1.0),)),
)


def _broadcast_to(d: Draw) -> Sample:
    shape = d.shape(0, 4, side=3)
    return Sample((d.array(d.broadcastable(shape)),), {"shape": shape})


case(
    "broadcast_to",
    _broadcast_to,
    lambda x, shape: np.ones(shape) * x,
    nothing,
    Hard(
        "to nothing passes nothing",
        (A([[3.0]]),),
        np.zeros((0, 1)),
        (A([[0.0]]),),
        {"shape": (0, 1)},
    ),
)


def _concatenate(d: Draw) -> Sample:
    shape = d.shape(1)
    axis = d.axis(len(shape))
    arrays = []
    for _ in range(d.integer(1, 3)):
        own = list(shape)
        own[axis] = d.integer(0, 3)
        arrays.append(d.array(tuple(own)))
    return Sample(tuple(arrays), {"axis": axis})


def _joined(*arrays: Array, axis: int) -> Array:
    shape = list(arrays[0].shape)
    shape[axis] = sum(a.shape[axis] for a in arrays)
    y, start = np.zeros(shape), 0
    for a in arrays:
        for place in np.ndindex(*a.shape):
            to = list(place)
            to[axis] += start
            y[tuple(to)] = a[place]
        start += a.shape[axis]
    return y


case(
    "concatenate",
    _concatenate,
    _joined,
    nothing,
    Hard(
        "one array passes as it is", (A([1.0, 2.0]),), A([1.0, 2.0]), (A([1.0, 1.0]),), {"axis": 0}
    ),
    Hard(
        "empty ones add nothing",
        (np.zeros(0), A([1.0]), np.zeros(0)),
        A([1.0]),
        (np.zeros(0), A([1.0]), np.zeros(0)),
        {"axis": 0},
    ),
)


def _stack(d: Draw) -> Sample:
    shape = d.shape()
    arrays = [d.array(shape) for _ in range(d.integer(1, 3))]
    return Sample(tuple(arrays), {"axis": d.axis(len(shape) + 1)})


def _stacked(*arrays: Array, axis: int) -> Array:
    y = np.zeros((len(arrays), *arrays[0].shape))
    for i, a in enumerate(arrays):
        y[i] = a
    return np.moveaxis(y, 0, axis)


case(
    "stack",
    _stack,
    _stacked,
    nothing,
    Hard("numbers become a row", (A(1.0), A(2.0)), A([1.0, 2.0]), (A(1.0), A(1.0)), {"axis": 0}),
)


def _split(d: Draw) -> Sample:
    shape = list(d.shape(1))
    axis = d.axis(len(shape))
    parts: Any = d.integer(1, 3)
    if d.boolean():
        shape[axis] = parts * d.integer(0, 2)
    else:
        parts = [d.integer(0, 3) for _ in range(parts)]
        shape[axis] = sum(parts)
    return Sample((d.array(tuple(shape)),), {"parts": parts, "axis": axis})


def _cut(x: Array, parts: Any, axis: int) -> tuple[Array, ...]:
    lengths = [x.shape[axis] // parts] * parts if isinstance(parts, int) else parts
    ends = list(itertools.accumulate(lengths))
    return tuple(x.take(range(end - n, end), axis) for n, end in zip(lengths, ends, strict=True))


case(
    "split",
    _split,
    _cut,
    nothing,
    Hard("into one part", (A([1.0, 2.0]),), (A([1.0, 2.0]),), (A([1.0, 1.0]),), {"parts": 1}),
    Hard(
        "a part of no length is empty",
        (A([1.0, 2.0]),),
        (np.zeros(0), A([1.0, 2.0])),
        (A([1.0, 1.0]),),
        {"parts": [0, 2]},
    ),
)


def _pad(d: Draw) -> Sample:
    x = d.array(d.shape(1))
    widths = tuple((d.integer(0, 2), d.integer(0, 2)) for _ in x.shape)
    return Sample((x,), {"widths": widths, "value": d.choice([0.0, -1.5])})


def _padded(x: Array, widths: Any, value: float) -> Array:
    y = np.zeros([n + sum(w) for n, w in zip(x.shape, widths, strict=True)]) + value
    for place in np.ndindex(*x.shape):
        y[tuple(i + w[0] for i, w in zip(place, widths, strict=True))] = x[place]
    return y


case(
    "pad",
    _pad,
    _padded,
    nothing,
    Hard(
        "of nothing is the constant",
        (np.zeros(0),),
        A([7.0, 7.0]),
        (np.zeros(0),),
        {"widths": [(1, 1)], "value": 7.0},
    ),
    Hard("by nothing is the value", (A([1.0]),), A([1.0]), (A([1.0]),), {"widths": [(0, 0)]}),
)


def _flip(d: Draw) -> Sample:
    x = d.array(d.shape())
    return Sample((x,), {"axis": d.axes(x.ndim)})


def _flipped(x: Array, axis: Any) -> Array:
    given = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    for i in given:
        x = x.take(range(x.shape[i])[::-1], i)
    return x


case(
    "flip",
    _flip,
    _flipped,
    nothing,
    Hard("of no axes it is the value", (A(2.0),), A(2.0), (A(1.0),)),
)
