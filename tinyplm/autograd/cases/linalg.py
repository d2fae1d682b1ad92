"""Cases of the products of matrices."""

import itertools
import math

import numpy as np

from ...types import Array
from .case import Hard, Sample, case, kept
from .draw import Draw, count

A = np.array


def _matmul(d: Draw) -> Sample:
    T, S, U = (0 if d.rarely(16) else d.integer(1, 4) for _ in range(3))
    kind = d.integer(
        0, 4
    )  # two matrices, stacks of them, a vector on the left, on the right, two vectors
    leading = d.shape(0, 2, side=3) if kind else ()
    a: tuple[int, ...] = (*d.broadcastable(leading), T, S)
    b: tuple[int, ...] = (*d.broadcastable(leading), S, U)
    if kind in (2, 4):
        a = (S,)
    if kind in (3, 4):
        b = (S,)
    return Sample((d.array(a), d.array(b)))


def _product(a: Array, b: Array) -> Array:
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    y = (left[..., :, :, None] * right[..., None, :, :]).sum(axis=-2)
    y = y[..., 0] if b.ndim == 1 else y
    return y[..., 0, :] if a.ndim == 1 and b.ndim > 1 else y[..., 0] if a.ndim == 1 else y


case(
    "matmul",
    _matmul,
    _product,
    kept(0, 1),
    Hard(
        "a product over nothing is 0",
        (np.zeros((2, 0)), np.zeros((0, 1))),
        np.zeros((2, 1)),
        (np.zeros((2, 0)), np.zeros((0, 1))),
    ),
    Hard(
        "two vectors give their inner product",
        (A([1.0, 2.0]), A([3.0, 4.0])),
        A(11.0),
        (A([3.0, 4.0]), A([1.0, 2.0])),
    ),
    Hard(
        "a vector stands for a row on the left",
        (A([1.0, 2.0]), A([[1.0], [1.0]])),
        A([3.0]),
        (A([1.0, 1.0]), A([[1.0], [2.0]])),
    ),
    Hard(
        "a vector stands for a column on the right",
        (A([[1.0, 2.0], [3.0, 4.0]]), A([5.0, 6.0])),
        A([17.0, 39.0]),
        (A([[5.0, 6.0], [5.0, 6.0]]), A([4.0, 6.0])),
    ),
    Hard(
        "leading axes broadcast",
        (np.ones((3, 1, 1)), A([[2.0]])),
        np.full((3, 1, 1), 2.0),
        (np.full((3, 1, 1), 2.0), A([[3.0]])),
    ),
)


def _linear(d: Draw) -> Sample:
    D, F = d.integer(1, 4), d.integer(1, 4)
    bias = d.array((F,)) if d.boolean() else None
    x = d.array((*d.shape(0, 2), D))
    return Sample((x, d.array((D, F)), bias))


def _rows_times(x: Array, weight: Array, bias: Array | None) -> Array:
    y = np.zeros((*x.shape[:-1], weight.shape[1]))
    for place in np.ndindex(*y.shape):
        row, column = x[place[:-1]], weight[:, place[-1]]
        y[place] = sum(float(p) * float(q) for p, q in zip(row, column, strict=True))
        y[place] += 0 if bias is None else bias[place[-1]]
    return y


case(
    "linear",
    _linear,
    _rows_times,
    kept(0, 1),
    Hard(
        "no rows",
        (np.zeros((0, 2)), np.ones((2, 3)), np.ones(3)),
        np.zeros((0, 3)),
        (np.zeros((0, 2)), np.zeros((2, 3)), np.zeros(3)),
    ),
    Hard(
        "one vector", (A([2.0]), A([[3.0]]), A([1.0])), A([7.0]), (A([3.0]), A([[2.0]]), A([1.0]))
    ),
    Hard(
        "no features out",
        (np.ones((2, 2)), np.zeros((2, 0)), None),
        np.zeros((2, 0)),
        (np.zeros((2, 2)), np.zeros((2, 0)), None),
    ),
)


def _linear_gelu(d: Draw) -> Sample:
    sample = _linear(d)
    return Sample(sample.inputs, {"approximate": "tanh"} if d.boolean() else {})


def _bent_rows(x: Array, weight: Array, bias: Array | None, *, approximate: str = "none") -> Array:
    u = _rows_times(x, weight, bias)
    root = math.sqrt(2 / math.pi)
    below = {
        "none": lambda v: (1 + math.erf(v / math.sqrt(2))) / 2,
        "tanh": lambda v: (1 + math.tanh(root * (v + 0.044715 * v**3))) / 2,
    }[approximate]
    return u * np.vectorize(below, otypes=[float])(u)


def _bent_keeps(s: Sample) -> int:
    """Input, weight, and what GELU is taken of."""
    x, weight, _ = s.inputs
    return x.nbytes + weight.nbytes + 8 * count(x.shape[:-1]) * weight.shape[1]


case(
    "linear_gelu",
    _linear_gelu,
    _bent_rows,
    _bent_keeps,
    Hard(
        "no rows",
        (np.zeros((0, 2)), np.ones((2, 3)), np.ones(3)),
        np.zeros((0, 3)),
        (np.zeros((0, 2)), np.zeros((2, 3)), np.zeros(3)),
    ),
    Hard(
        "half of nothing is let through at 0",
        (A([2.0]), A([[3.0]]), A([-6.0])),
        A([0.0]),
        (A([1.5]), A([[1.0]]), A([0.5])),
    ),
)


def _feed_forward(d: Draw) -> Sample:
    sample = _linear_gelu(d)
    F, E = sample.inputs[1].shape[1], d.integer(1, 4)
    behind = d.array((F, E)), d.array((E,)) if d.boolean() else None
    return Sample((*sample.inputs, *behind), sample.attributes)


def _both(
    x: Array,
    weight_in: Array,
    bias_in: Array | None,
    weight_out: Array,
    bias_out: Array | None,
    *,
    approximate: str = "none",
) -> Array:
    y = _bent_rows(x, weight_in, bias_in, approximate=approximate)
    return _rows_times(y, weight_out, bias_out)


def _both_keep(s: Sample) -> int:
    """Both inputs of products, both weights, and what GELU is taken of."""
    x, weight_in, _, weight_out, _ = s.inputs
    inner = 8 * count(x.shape[:-1]) * weight_in.shape[1]
    return x.nbytes + weight_in.nbytes + weight_out.nbytes + 2 * inner


case(
    "feed_forward",
    _feed_forward,
    _both,
    _both_keep,
    Hard(
        "no rows",
        (np.zeros((0, 2)), np.ones((2, 3)), np.ones(3), np.ones((3, 1)), np.ones(1)),
        np.zeros((0, 1)),
        (np.zeros((0, 2)), np.zeros((2, 3)), np.zeros(3), np.zeros((3, 1)), np.zeros(1)),
    ),
    Hard(
        "half of a gradient passes a GELU of 0",
        (A([2.0]), A([[3.0]]), A([-6.0]), A([[5.0]]), A([7.0])),
        A([7.0]),
        (A([7.5]), A([[5.0]]), A([2.5]), A([[0.0]]), A([1.0])),
    ),
)

EQUATIONS = [
    "ij,jk->ik",
    "i,i->",
    "ij->ji",
    "ij->",
    "ij->i",
    "i->i",
    "ii->i",
    "ii->",
    "iij->j",
    "bthk,bshk->bhts",
    "ij,jk,kl->il",
    "ij,jk",
    "ba",
    "ii",
    "...i,...i->...",
    "...ij,jk->...ik",
    "i...->...",
    "...ij->...ji",
    "ij,ij,ij->ij",
    ",i->i",
    "i,j->ij",
    "...,...->...",
    "b...,b...->b",
    "ij,ji->",
    "iji->ij",
    "i,i,i->",
    "a...b,bc->a...c",
]


def _einsum(d: Draw) -> Sample:
    equation = d.choice(EQUATIONS)
    lengths = {c: d.integer(1, 3) for c in sorted(set(equation) - set("->,."))}
    leading = d.shape(0, 2, side=3, empty=False)
    if lengths and d.rarely(16):
        lengths[d.choice(sorted(lengths))] = 0
    operands = []
    for term in equation.partition("->")[0].split(","):
        before, dots, after = term.partition("...")
        shape = [lengths[c] for c in before]
        shape += d.broadcastable(leading) if dots else []
        operands.append(d.array((*shape, *(lengths[c] for c in after))))
    return Sample(tuple(operands), {"equation": equation})


def _summed(*operands: Array, equation: str) -> Array:
    """Every combination of letters, one by one; the axes of "..." are letters of their own here."""
    left, arrow, result = equation.partition("->")
    spans = [
        x.ndim - len(t.replace("...", "")) for t, x in zip(left.split(","), operands, strict=True)
    ]
    most = max([s for s, t in zip(spans, left.split(","), strict=True) if "..." in t], default=0)
    dots = "ZYXW"[:most]
    terms = [
        t.replace("...", dots[most - s :]) for t, s in zip(left.split(","), spans, strict=True)
    ]
    letters = "".join(terms)
    if not arrow:
        result = dots + "".join(
            sorted(c for c in set(letters) - set(dots) if letters.count(c) == 1)
        )
    result = result.replace("...", dots)
    lengths: dict[str, int] = {}
    for c, n in (
        (c, n)
        for t, x in zip(terms, operands, strict=True)
        for c, n in zip(t, x.shape, strict=True)
    ):
        lengths[c] = n if lengths.get(c, 1) == 1 else lengths[c]
    y = np.zeros([lengths[c] for c in result])
    for combination in itertools.product(*(range(n) for n in lengths.values())):
        at = dict(zip(lengths, combination, strict=True))
        value = 1.0
        for t, x in zip(terms, operands, strict=True):
            value *= float(x[tuple(at[c] if n > 1 else 0 for c, n in zip(t, x.shape, strict=True))])
        y[tuple(at[c] for c in result)] += value
    return y


def _all(s: Sample) -> int:
    return sum(x.nbytes for x in s.inputs)


case(
    "einsum",
    _einsum,
    _summed,
    _all,
    Hard(
        "a repeated letter is the diagonal",
        (A([[1.0, 2.0], [3.0, 4.0]]),),
        A([1.0, 4.0]),
        (A([[1.0, 0.0], [0.0, 1.0]]),),
        {"equation": "ii->i"},
    ),
    Hard(
        "without -> the letters that occur once, in order",
        (A([[1.0, 2.0]]),),
        A([[1.0], [2.0]]),
        (A([[1.0, 1.0]]),),
        {"equation": "ba"},
    ),
    Hard(
        "a letter of one operand alone is summed",
        (A([[1.0, 2.0]]), A([3.0])),
        A([9.0]),
        (A([[3.0, 3.0]]), A([3.0])),
        {"equation": "ij,i->i"},
    ),
    Hard(
        "a length of one broadcasts",
        (A([[2.0]]), A([[1.0, 2.0]])),
        A([[2.0, 4.0]]),
        (A([[3.0]]), A([[2.0, 2.0]])),
        {"equation": "...i,...i->...i"},
    ),
    Hard(
        "fewer axes behind the dots count from the last",
        (A([[[2.0]]]), A([[1.0, 2.0]])),
        A([[[2.0, 4.0]]]),
        (A([[[3.0]]]), A([[2.0, 2.0]])),
        {"equation": "...i,...i->...i"},
    ),
    Hard(
        "a sum over nothing is 0",
        (np.zeros((2, 0)),),
        A([0.0, 0.0]),
        (np.zeros((2, 0)),),
        {"equation": "ij->i"},
    ),
)
