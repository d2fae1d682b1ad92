"""Cases of the normalisations."""

import math
import statistics
from collections.abc import Callable

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


def _residual(plain: Callable[[Draw], Sample]) -> Callable[[Draw], Sample]:
    """A branch besides, of the shape of x."""

    def drawn(d: Draw) -> Sample:
        s = plain(d)
        x, *rest = s.inputs
        return Sample((x, d.array(x.shape), *rest), s.attributes)

    return drawn


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


def _keeps(per_row: int) -> Callable[[Sample], int]:
    """Rows, or sums of rows, with gain and so many numbers of each row; bias is not kept."""

    def bytes_of(s: Sample) -> int:
        x, width = s.inputs[0], s.inputs[0].shape[-1]
        return int(x.nbytes + 8 * width + 8 * per_row * (x.size // width))

    return bytes_of


case(
    "layer_norm",
    _layer_norm,
    _normalised,
    _keeps(2),
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
    _keeps(1),
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
case(
    "residual_layer_norm",
    _residual(_layer_norm),
    lambda x, branch, gain, bias, eps: (x + branch, _normalised(x + branch, gain, bias, eps)),
    _keeps(2),
    Hard(
        "the gradient of the sum passes to both, whatever was normalised",
        (A([[7.0, 5.0]]), A([[0.0, 2.0]]), A([2.0, 2.0]), A([1.0, -1.0])),
        (A([[7.0, 7.0]]), A([[1.0, -1.0]])),
        (A([[1.0, 1.0]]), A([[1.0, 1.0]]), A([0.0, 0.0]), A([1.0, 1.0])),
    ),
    Hard(
        "two values become plus and minus one",
        (A([[4.0, 3.0]]), A([[1.0, 0.0]]), A([2.0, 2.0]), A([0.0, 1.0])),
        (A([[5.0, 3.0]]), A([[2.0, -1.0]])),
        (A([[1.0, 1.0]]), A([[1.0, 1.0]]), A([1.0, -1.0]), A([1.0, 1.0])),
        {"eps": 0.0},
    ),
    Hard(
        "no rows",
        (np.zeros((0, 2)), np.zeros((0, 2)), np.ones(2), np.ones(2)),
        (np.zeros((0, 2)), np.zeros((0, 2))),
        (np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(2), np.zeros(2)),
    ),
    Hard(
        "NaN stays in its row",
        (A([[math.nan, 1.0], [0.0, 0.0]]), np.zeros((2, 2)), np.ones(2), np.zeros(2)),
        (A([[math.nan, 1.0], [0.0, 0.0]]), A([[math.nan, math.nan], [0.0, 0.0]])),
        (
            *(A([[math.nan, math.nan], [1.0, 1.0]]),) * 2,
            *(A([math.nan, math.nan]), A([2.0, 2.0])),
        ),
    ),
)
case(
    "residual_rms_norm",
    _residual(_rms_norm),
    lambda x, branch, gain, eps: (x + branch, _scaled(x + branch, gain, eps)),
    _keeps(1),
    Hard(
        "a sum of zeros gives zeros",
        (A([[1.0, -1.0]]), A([[-1.0, 1.0]]), A([2.0, 2.0])),
        (A([[0.0, 0.0]]), A([[0.0, 0.0]])),
        (A([[3.0, 3.0]]), A([[3.0, 3.0]]), A([0.0, 0.0])),
        {"eps": 1.0},
    ),
    Hard(
        "no rows",
        (np.zeros((0, 2)), np.zeros((0, 2)), np.ones(2)),
        (np.zeros((0, 2)), np.zeros((0, 2))),
        (np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(2)),
    ),
)
