"""Cases of the ops that pick and add by position."""

from typing import Any

import numpy as np

from ...types import Array
from .case import Hard, Sample, case
from .draw import Draw

A = np.array


def _index(d: Draw) -> Sample:
    x = d.array(d.shape(1, empty=False))
    kind = d.integer(0, 5)
    first = x.shape[0]
    key: Any
    if kind == 0:
        parts: list[Any] = [
            d.choice(
                [
                    slice(None),
                    slice(0, n),
                    slice(None, None, -1),
                    slice(1, None, 2),
                    d.integer(-n, n - 1),
                ]
            )
            for n in x.shape[: d.integer(1, x.ndim)]
        ]
        if d.boolean():
            parts.insert(d.integer(0, len(parts)), None)
        if d.boolean():
            parts.append(...)
        key = tuple(parts)
    elif kind == 1:
        key = d.integer(-first, first - 1)
    elif kind == 2:  # positions that may repeat
        key = d.whole(d.shape(1, 2), -first, first - 1)
    elif kind == 3:
        key = d.booleans(x.shape[: d.integer(1, x.ndim)])
    elif kind == 4:
        key = ([d.integer(0, first - 1) for _ in range(d.integer(1, 4))], ...)
    else:
        shape = d.shape(0, 2)
        key = tuple(d.whole(d.broadcastable(shape), -n, n - 1) for n in x.shape)
    return Sample((x,), {"key": key})


def _picked(x: Array, key: Any) -> Array:
    places = np.arange(x.size).reshape(x.shape)[key]
    flat = [float(x[place]) for place in np.ndindex(*x.shape)]
    return A([flat[i] for i in np.ravel(places)], float).reshape(np.shape(places))


def _key_bytes(s: Sample) -> int:
    key = s.attributes["key"]
    parts = key if isinstance(key, tuple) else (key,)
    return sum(np.asarray(p).nbytes for p in parts if isinstance(p, np.ndarray | list))


case(
    "index",
    _index,
    _picked,
    _key_bytes,
    Hard(
        "repeated positions add up",
        (A([1.0, 2.0]),),
        A([2.0, 2.0, 1.0]),
        (A([1.0, 2.0]),),
        {"key": [1, 1, 0]},
    ),
    Hard(
        "a tuple within the key repeats too",
        (A([1.0, 2.0]),),
        A([2.0, 2.0]),
        (A([0.0, 2.0]),),
        {"key": ((1, 1),)},
    ),
    Hard(
        "no position picks nothing",
        (A([1.0, 2.0]),),
        np.zeros(0),
        (A([0.0, 0.0]),),
        {"key": A([], int)},
    ),
    Hard(
        "a mask that is nowhere true picks nothing",
        (A([1.0, 2.0]),),
        np.zeros(0),
        (A([0.0, 0.0]),),
        {"key": A([False, False])},
    ),
    Hard(
        "new axes",
        (A([1.0, 2.0]),),
        A([[[2.0]]]),
        (A([0.0, 1.0]),),
        {"key": (None, slice(1, 2), None)},
    ),
)


def _take_rows(d: Draw) -> Sample:
    table = d.array((d.integer(1, 5), *d.shape(0, 2, side=3)))
    return Sample((table, d.whole(d.shape(0, 2), 0, len(table) - 1)))


case(
    "take_rows",
    _take_rows,
    lambda table, ids: A([table[i] for i in ids.ravel().tolist()], float).reshape(
        (*ids.shape, *table.shape[1:])
    ),
    lambda s: s.inputs[1].nbytes,
    Hard(
        "a row receives the sum over its places",
        (A([[1.0], [2.0], [3.0]]), A([2, 0, 2, 2])),
        A([[3.0], [1.0], [3.0], [3.0]]),
        (A([[1.0], [0.0], [3.0]]), None),
    ),
    Hard("no id", (A([[1.0]]), np.zeros((0, 2), int)), np.zeros((0, 2, 1)), (A([[0.0]]), None)),
    Hard(
        "rows of no width",
        (np.zeros((2, 0)), A([1, 1])),
        np.zeros((2, 0)),
        (np.zeros((2, 0)), None),
    ),
)


def _take_along_axis(d: Draw) -> Sample:
    whole = d.shape(1, empty=False)
    axis = d.axis(len(whole))
    x_shape, shape = ([1 if d.rarely(4) else n for n in whole] for _ in range(2))
    x_shape[axis], shape[axis] = whole[axis], d.integer(0, 4)
    n = whole[axis]
    return Sample((d.array(tuple(x_shape)), d.whole(tuple(shape), -n, n - 1)), {"axis": axis})


def _along(x: Array, indices: Array, axis: int) -> Array:
    axis %= x.ndim
    full = [max(n, m) if n and m else 0 for n, m in zip(x.shape, indices.shape, strict=True)]
    full[axis] = indices.shape[axis]
    y = np.zeros(full)
    for place in np.ndindex(*full):
        at = [i if n > 1 else 0 for i, n in zip(place, indices.shape, strict=True)]
        source = [i if n > 1 else 0 for i, n in zip(place, x.shape, strict=True)]
        source[axis] = int(indices[tuple(at)])
        y[place] = x[tuple(source)]
    return y


case(
    "take_along_axis",
    _take_along_axis,
    _along,
    lambda s: s.inputs[1].nbytes,
    Hard(
        "repeated indices add up",
        (A([1.0, 2.0]), A([1, 1, 0])),
        A([2.0, 2.0, 1.0]),
        (A([1.0, 2.0]), None),
    ),
    Hard(
        "negative indices count from the end",
        (A([1.0, 2.0]), A([-1])),
        A([2.0]),
        (A([0.0, 1.0]), None),
    ),
    Hard("no index", (A([1.0]), A([], int)), np.zeros(0), (A([0.0]), None)),
)


def _scatter_add(d: Draw) -> Sample:
    x = d.array(d.shape(1, empty=False))
    axis = d.axis(x.ndim)
    shape = list(x.shape)
    shape[axis] = d.integer(0, 4)
    n = x.shape[axis]
    indices = d.whole(d.broadcastable(tuple(shape)), -n, n - 1)
    return Sample((x, indices, d.array(tuple(shape))), {"axis": axis})


def _added(x: Array, indices: Array, updates: Array, axis: int) -> Array:
    y = A(x)
    indices = np.broadcast_to(indices, updates.shape)
    for place in np.ndindex(*updates.shape):
        to = list(place)
        to[axis] = int(indices[place])
        y[tuple(to)] += updates[place]
    return y


def _places(s: Sample) -> int:
    """The indices as they came, and the places along the other axes."""
    axis = s.attributes["axis"] % s.inputs[0].ndim
    others = sum(n for i, n in enumerate(s.inputs[2].shape) if i != axis)
    return int(s.inputs[1].nbytes + 8 * others)


case(
    "scatter_add",
    _scatter_add,
    _added,
    _places,
    Hard(
        "repeated indices add up",
        (A([1.0, 1.0]), A([1, 1]), A([2.0, 3.0])),
        A([1.0, 6.0]),
        (A([1.0, 1.0]), None, A([1.0, 1.0])),
    ),
    Hard("nothing to add", (A([1.0]), A([], int), A([])), A([1.0]), (A([1.0]), None, A([]))),
)
