"""Cases of the losses."""

import math
from typing import Any

import numpy as np

from ...types import Array
from .case import Hard, Sample, case, each, kept
from .draw import Draw, count

inf, nan = math.inf, math.nan
A = np.array
REDUCTIONS = ["mean", "sum", "none"]


def _labels(d: Draw, shape: tuple[int, ...], V: int) -> dict[str, Any]:
    """Labels and options; at least one label counts, so that a mean exists."""
    ignored = d.choice([-100, 0])
    labels = np.where(d.booleans(shape) & d.booleans(shape), ignored, d.whole(shape, 0, V - 1))
    if labels.size:
        labels[(0,) * labels.ndim] = V - 1
    weights = np.abs(d.array(shape)) + 0.1 if d.rarely(3) else None
    smoothing = d.choice([0.0, 0.1])
    return {"labels": labels, "ignored": ignored, "smoothing": smoothing, "weights": weights}


def _cross_entropy(d: Draw) -> Sample:
    V = d.integer(2, 5)
    shape = d.shape(0, 2)
    more = _labels(d, shape, V)
    logits = d.array((*shape, V), -4, 4)
    reduction = d.choice(REDUCTIONS) if logits.size else d.choice(["sum", "none"])
    labels = more.pop("labels")
    return Sample((logits, labels), more | {"reduction": reduction})


def _mean_surprise(
    logits: Array,
    labels: Array,
    ignored: int = -100,
    smoothing: float = 0.0,
    weights: Array | None = None,
    reduction: str = "mean",
) -> Array:
    V = logits.shape[-1]
    losses, shares = [], []
    for place in np.ndindex(*labels.shape):
        label, row = int(labels[place]), logits[place].tolist()
        counts = 0.0 if label == ignored else 1.0 if weights is None else float(weights[place])
        log_sum = math.log(math.fsum(map(math.exp, row)))
        target = [smoothing / V + (1 - smoothing) * (v == label) for v in range(V)]
        losses.append(math.fsum(t * (log_sum - x) for t, x in zip(target, row, strict=True)))
        shares.append(counts)
    each_one = [loss * share for loss, share in zip(losses, shares, strict=True)]
    if reduction == "none":
        return A(each_one, float).reshape(labels.shape)
    return A(math.fsum(each_one) / (math.fsum(shares) if reduction == "mean" else 1))


OFF, LN2 = -100, math.log(2)
case(
    "cross_entropy",
    _cross_entropy,
    _mean_surprise,
    lambda s: s.inputs[0].nbytes + 3 * 8 * s.inputs[1].size,
    Hard(
        "an ignored label gives 0 and passes nothing, whatever its logits",
        (A([[0.0, 0.0], [nan, inf]]), A([1, OFF])),
        A([LN2, 0.0]),
        (A([[0.5, -0.5], [0.0, 0.0]]), None),
        {"reduction": "none"},
    ),
    Hard(
        "a row of minus infinities can be ignored",
        (A([[0.0, 0.0], [-inf, -inf]]), A([1, OFF])),
        A(LN2),
        (A([[0.5, -0.5], [0.0, 0.0]]), None),
    ),
    Hard(
        "a weight of 0 counts as ignored",
        (A([[0.0, 0.0], [nan, 0.0]]), A([1, 0])),
        A(LN2),
        (A([[0.5, -0.5], [0.0, 0.0]]), None),
        {"weights": A([2.0, 0.0])},
    ),
    Hard(
        "a negative weight counts against",
        (np.zeros((2, 2)), A([1, 0])),
        A([2 * LN2, -LN2]),
        (A([[1.0, -1.0], [0.5, -0.5]]), None),
        {"weights": A([2.0, -1.0]), "reduction": "none"},
    ),
    Hard(
        "a mean is divided by the sum of weights, be it negative",
        (np.zeros((1, 2)), A([1])),
        A(LN2),
        (A([[0.5, -0.5]]), None),
        {"weights": A([-2.0])},
    ),
    Hard("without overflow", (A([[1000.0, 0.0]]), A([1])), A(1000.0), (A([[1.0, -1.0]]), None)),
    Hard(
        "a label that cannot be costs infinitely much",
        (A([[0.0, -inf]]), A([1])),
        A(inf),
        (A([[1.0, -1.0]]), None),
    ),
    Hard(
        "equal logits cost log V",
        (np.zeros((1, 8)), A([3])),
        A(math.log(8)),
        (A([[0.125] * 3 + [-0.875] + [0.125] * 4]), None),
    ),
    Hard("one class costs nothing", (A([[5.0]]), A([0])), A(0.0), (A([[0.0]]), None)),
    Hard(
        "the sum of no position is 0",
        (np.zeros((0, 3)), np.zeros(0, int)),
        A(0.0),
        (np.zeros((0, 3)), None),
        {"reduction": "sum"},
    ),
    Hard(
        "smoothing of 1 spreads the target evenly",
        (A([[0.0, 0.0]]), A([1])),
        A(LN2),
        (A([[0.0, 0.0]]), None),
        {"smoothing": 1.0},
    ),
)


def _linear_cross_entropy(d: Draw) -> Sample:
    V, D = d.integer(2, 5), d.integer(1, 3)
    shape = d.shape(0, 2)
    more = _labels(d, shape, V)
    x = d.array((*shape, D))
    bias = d.array((V,)) if d.boolean() else None
    reduction = d.choice(["mean", "sum"]) if x.size else "sum"
    more |= {"reduction": reduction, "scale": d.choice([1.0, 0.25])}
    return Sample((x, d.array((V, D)), bias, more.pop("labels")), more)


def _from_logits(
    x: Array, weight: Array, bias: Any, labels: Array, scale: float, **more: Any
) -> Array:
    logits = (x[..., None, :] * weight).sum(axis=-1) + (0 if bias is None else bias)
    return np.asarray(scale * _mean_surprise(logits, labels, **more))


case(
    "linear_cross_entropy",
    _linear_cross_entropy,
    _from_logits,
    kept(0, 1, 2),
    Hard(
        "half the gradient from outside halves every gradient",
        (A([[1.0]]), A([[2.0], [2.0]]), A([0.0, 0.0]), A([1])),
        A(LN2),
        (A([[0.0]]), A([[0.25], [-0.25]]), A([0.25, -0.25]), None),
        incoming=A(0.5),
    ),
    Hard(
        "an ignored label passes nothing",
        (A([[0.0], [7.0]]), A([[1.0], [1.0]]), None, A([1, OFF])),
        A(LN2),
        (A([[0.0], [0.0]]), A([[0.0], [0.0]]), None, None),
    ),
    Hard(
        "the sum of no position is 0",
        (np.zeros((0, 2)), np.ones((3, 2)), np.ones(3), np.zeros(0, int)),
        A(0.0),
        (np.zeros((0, 2)), np.zeros((3, 2)), np.zeros(3), None),
        {"reduction": "sum"},
    ),
    Hard(
        "equal logits cost log V",
        (A([[0.0]]), np.ones((4, 1)), None, A([0])),
        A(math.log(4)),
        (A([[0.0]]), np.zeros((4, 1)), None, None),
    ),
)


def _reduced(d: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"reduction": d.choice(REDUCTIONS if count(shape) else REDUCTIONS[1:])}


def _together(losses: Array, reduction: str) -> Array:
    values = losses.ravel().tolist()
    if reduction == "none":
        return losses
    return A(math.fsum(values) / (len(values) if reduction == "mean" else 1))


def _binary(d: Draw) -> Sample:
    shape = d.shape()
    targets = d.array(shape, 0, 1)
    return Sample((d.array(shape, -4, 4), targets), _reduced(d, shape))


case(
    "binary_cross_entropy",
    _binary,
    lambda x, t, reduction: _together(
        each(lambda x, t: t * math.log1p(math.exp(-x)) + (1 - t) * math.log1p(math.exp(x)))(x, t),
        reduction,
    ),
    kept(0, 1),
    Hard(
        "without overflow",
        (A([1000.0, -1000.0]), A([0.0, 1.0])),
        A([1000.0, 1000.0]),
        (A([1.0, -1.0]), A([-1000.0, 1000.0])),
        {"reduction": "none"},
    ),
    Hard(
        "an infinite logit gives NaN without a warning",
        (A([inf]), A([1.0])),
        A(nan),
        (A([0.0]), A([-inf])),
    ),
    Hard("a logit of 0 costs log 2", (A([0.0]), A([1.0])), A(LN2), (A([-0.5]), A([0.0]))),
    Hard(
        "the sum of nothing is 0",
        (np.zeros(0), np.zeros(0)),
        A(0.0),
        (np.zeros(0), np.zeros(0)),
        {"reduction": "sum"},
    ),
)


def _squared(d: Draw) -> Sample:
    shape = d.shape()
    return Sample((d.array(shape), d.array(shape)), _reduced(d, shape))


case(
    "mean_squared_error",
    _squared,
    lambda a, b, reduction: _together(
        each(lambda a, b: a * a - 2 * a * b + b * b)(a, b), reduction
    ),
    kept(0),
    Hard("equal values cost nothing", (A([2.0]), A([2.0])), A(0.0), (A([0.0]), A([0.0]))),
    Hard("one value", (A(3.0), A(1.0)), A(4.0), (A(4.0), A(-4.0))),
)


def _cosine(d: Draw) -> Sample:
    whole = list(d.shape(1))
    axis = d.axis(len(whole))
    whole[axis] = d.integer(1, 4)
    b_shape = tuple(1 if i != axis % len(whole) and d.rarely(3) else n for i, n in enumerate(whole))
    eps = d.choice([1e-8, 0.5])
    return Sample((d.array(tuple(whole)), d.array(b_shape)), {"axis": axis, "eps": eps})


def _angle(a: Array, b: Array, axis: int, eps: float) -> Array:
    a, b = (np.moveaxis(x, axis, -1) for x in np.broadcast_arrays(a, b))
    y = np.zeros(a.shape[:-1])
    for place in np.ndindex(*y.shape):
        p, q = a[place].tolist(), b[place].tolist()
        inner = math.fsum(u * v for u, v in zip(p, q, strict=True))
        y[place] = inner / max(math.hypot(*p), eps) / max(math.hypot(*q), eps)
    return y


def _units(s: Sample) -> int:
    shape = list(np.broadcast_shapes(*(x.shape for x in s.inputs)))
    whole = count(shape)
    shape[s.attributes["axis"]] = 1
    return 2 * 8 * whole + 3 * 8 * count(shape)


case(
    "cosine",
    _cosine,
    _angle,
    _units,
    Hard(
        "a vector of zeros has cosine 0",
        (A([0.0, 0.0]), A([0.0, 2.0])),
        A(0.0),
        (A([0.0, 1e2]), A([0.0, 0.0])),
        {"eps": 1e-2},
    ),
    Hard(
        "of one value it is a sign and passes nothing",
        (A([-3.0]), A([2.0])),
        A(-1.0),
        (A([0.0]), A([0.0])),
    ),
    Hard(
        "parallel vectors have cosine 1",
        (A([1.0, 0.0]), A([3.0, 0.0])),
        A(1.0),
        (A([0.0, 0.0]), A([0.0, 0.0])),
    ),
)


def _divergence(d: Draw) -> Sample:
    shape = (*d.shape(0, 2, empty=False), d.integer(1, 4))
    return Sample((d.array(shape, -4, 0), d.array(shape, -4, 0)), _reduced(d, shape))


def _kl(log_p: Array, log_q: Array, reduction: str) -> Array:
    terms = each(lambda p, q: math.exp(p) * p - math.exp(p) * q)(log_p, log_q)
    return _together(
        A([math.fsum(row) for row in terms.reshape(-1, terms.shape[-1])]).reshape(terms.shape[:-1]),
        reduction,
    )


case(
    "kl_divergence",
    _divergence,
    _kl,
    kept(0, 0),
    Hard(
        "where p is 0 nothing is added, whatever q is",
        (A([0.0, -inf, -inf]), A([0.0, -inf, -3.0])),
        A(0.0),
        (A([1.0, 0.0, 0.0]), A([-1.0, 0.0, 0.0])),
    ),
    Hard(
        "what q cannot give costs infinitely much",
        (A([0.0]), A([-inf])),
        A(inf),
        (A([inf]), A([-1.0])),
    ),
    Hard(
        "equal distributions cost nothing",
        (A([-LN2, -LN2]), A([-LN2, -LN2])),
        A(0.0),
        (A([0.5, 0.5]), A([-0.5, -0.5])),
    ),
)
