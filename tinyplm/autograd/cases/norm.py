"""Cases of the normalisations."""

import math
import statistics

import numpy as np

from ...types import Array
from .case import Hard, Sample, case
from .draw import Draw

A = np.array


def _layer_norm(d: Draw) -> Sample:
    D = d.integer(3, 5)  # fewer values have no freedom left when normalised: a hard input
    x = d.array((*d.shape(0, 2), D))
    return Sample((x, d.array((D,)), d.array((D,))), {"eps": d.choice([1e-5, 1e-2, 1e-1])})


def _rms_norm(d: Draw) -> Sample:
    D = d.integer(1, 5)
    return Sample((d.array((*d.shape(0, 2), D)), d.array((D,))), {"eps": d.choice([1e-6, 1e-2])})


def _normalised(x: Array, gain: Array, bias: Array, eps: float) -> Array:
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape[:-1]):
        row = x[place].tolist()
        middle, spread = statistics.fmean(row), math.sqrt(statistics.pvariance(row) + eps)
        y[place] = [w * (v - middle) / spread + b for v, w, b in zip(row, gain, bias, strict=True)]
    return y


def _scaled(x: Array, gain: Array, eps: float) -> Array:
    y = np.zeros(x.shape)
    for place in np.ndindex(*x.shape[:-1]):
        row = x[place].tolist()
        size = math.sqrt(math.fsum(v * v for v in row) / len(row) + eps)
        y[place] = [w * v / size for v, w in zip(row, gain, strict=True)]
    return y


def _keeps(s: Sample) -> int:
    x, gain = s.inputs[:2]
    return int(x.nbytes + gain.nbytes + 8 * (x.size // x.shape[-1]))


case(
    "layer_norm",
    _layer_norm,
    _normalised,
    _keeps,
    Hard(
        "equal values give the bias",
        (A([[7.0, 7.0]]), A([2.0, 2.0]), A([1.0, -1.0])),
        A([[1.0, -1.0]]),
        (np.zeros((1, 2)), A([0.0, 0.0]), A([1.0, 1.0])),
    ),
    Hard(
        "one value gives the bias and passes nothing",
        (A([[3.0]]), A([2.0]), A([1.0])),
        A([[1.0]]),
        (A([[0.0]]), A([0.0]), A([1.0])),
    ),
    Hard(
        "two values become plus and minus one",
        (A([[5.0, 3.0]]), A([2.0, 2.0]), A([0.0, 1.0])),
        A([[2.0, -1.0]]),
        (A([[0.0, 0.0]]), A([1.0, -1.0]), A([1.0, 1.0])),
        {"eps": 0.0},
    ),
    Hard(
        "no rows",
        (np.zeros((0, 2)), np.ones(2), np.ones(2)),
        np.zeros((0, 2)),
        (np.zeros((0, 2)), np.zeros(2), np.zeros(2)),
    ),
    Hard(
        "NaN stays in its row",
        (A([[math.nan, 1.0], [0.0, 0.0]]), np.ones(2), np.zeros(2)),
        A([[math.nan, math.nan], [0.0, 0.0]]),
        (A([[math.nan, math.nan], [0.0, 0.0]]), A([math.nan, math.nan]), A([2.0, 2.0])),
    ),
)
case(
    "rms_norm",
    _rms_norm,
    _scaled,
    _keeps,
    Hard(
        "zeros give zeros",
        (A([[0.0, 0.0]]), A([2.0, 2.0])),
        A([[0.0, 0.0]]),
        (A([[2.0, 2.0]]), A([0.0, 0.0])),
        {"eps": 1.0},
    ),
    Hard(
        "no rows", (np.zeros((0, 2)), np.ones(2)), np.zeros((0, 2)), (np.zeros((0, 2)), np.zeros(2))
    ),
)
