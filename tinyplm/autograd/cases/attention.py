"""The case of attention."""

import math
from typing import Any

import numpy as np

from ...types import Array
from ..engine import OPS
from .case import Hard, Sample, Seed, case, nothing
from .draw import Draw, count

inf, nan = math.inf, math.nan
A = np.array


def _attention(d: Draw) -> Sample:
    leading = d.shape(0, 2, side=2, empty=False)
    T, S = d.integer(1, 4), d.integer(1, 4)
    if d.rarely(12):
        T, S = d.choice([(0, 2), (2, 0)])
    K, J = d.integer(1, 3), d.integer(1, 3)
    scores = (*leading, T, S)
    bias = d.array(d.broadcastable(scores)) if d.rarely(2) else None
    differences = None
    if bias is None and leading and T and S and d.rarely(2):
        differences = d.array((leading[-1], S + T - 1))
    attributes: dict[str, Any] = {"causal": d.boolean()}
    if d.rarely(3):
        attributes["window"] = d.integer(1, 4)
    if d.rarely(3):
        attributes["mask"] = d.booleans(d.broadcastable(scores))
    if leading and d.rarely(3):
        attributes["key_padding"] = d.booleans((leading[0], S))
    if d.rarely(3):
        attributes["scale"] = 0.7
    if d.rarely(3):
        attributes |= {"rate": 0.4, "rng": Seed(d.integer(0, 99))}
    if d.rarely(3):
        attributes["return_probabilities"] = True
    q, k, v = (d.array((*leading, *shape)) for shape in ((T, K), (S, K), (S, J)))
    return Sample((q, k, v, bias, differences), attributes)


def _one_by_one(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    differences: Array | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
    mask: Array | None = None,
    key_padding: Array | None = None,
    scale: float | None = None,
    rate: float = 0.0,
    rng: Any = None,
    return_probabilities: bool = False,
) -> Any:
    """Each query by itself, over lists of keys."""
    *leading, T, K = q.shape
    S = k.shape[-2]
    scores = (*leading, T, S)
    if differences is not None:
        bias = _pairs(differences, queries=T)
    added = np.broadcast_to(0.0 if bias is None else bias, scores)
    allowed = np.broadcast_to(True if mask is None else mask, scores)
    p, y = np.zeros(scores), np.zeros((*leading, T, v.shape[-1]))
    factors = kept_factors(q, k, rate, rng)
    for place in np.ndindex(*leading, T):
        *where, t = place
        head = tuple(where)
        seen = [
            s
            for s in range(S)
            if allowed[(*place, s)]
            and (key_padding is None or key_padding[head[0], s])
            and (not causal or s <= t + S - T)
            and (window is None or abs(s - (t + S - T)) < window)
        ]
        score = {
            s: math.fsum(q[place] * k[(*head, s)]) * (K**-0.5 if scale is None else scale)
            + float(added[(*place, s)])
            for s in seen
        }
        total = math.fsum(math.exp(x) for x in score.values())
        for s in seen:
            p[(*place, s)] = math.exp(score[s]) / total
            y[place] += p[(*place, s)] * factors[(*place, s)] * v[(*head, s)]
    return (y, p) if return_probabilities else y


def kept_factors(q: Array, k: Array, rate: float, rng: Any) -> Array:
    """What dropout multiplies the probabilities with, seen from outside.

    The same seed drops the same: with unit vectors for values the result is what was used of each probability, and
    without a mask no probability is 0 by itself.
    """
    scores = (*q.shape[:-1], k.shape[-2])
    if rng is None or not rate:
        return np.ones(scores)
    units = np.broadcast_to(np.eye(scores[-1]), (*q.shape[:-2], scores[-1], scores[-1]))
    used, _ = OPS["attention"].on_arrays(0 * q, k, units, rate=rate, rng=rng)
    return np.where(used > 0, 1 / (1 - rate), 0.0)


def _keeps(s: Sample) -> int:
    """Inputs, result, probabilities, a sum for each row, and the mask: one given, or two joined."""
    q, k, v, *_ = s.inputs
    total = sum(x.nbytes for x in s.inputs if x is not None)
    rows = count(q.shape[:-1])
    total += 8 * rows * (k.shape[-2] + v.shape[-1] + 1)
    masks = [s.attributes[name] for name in ("mask", "key_padding") if name in s.attributes]
    if len(masks) == 2:
        real = masks[1].reshape(q.shape[0], *(1,) * (q.ndim - 2), -1)
        return total + count(np.broadcast_shapes(masks[0].shape, real.shape))
    return total + sum(m.base.nbytes if m.base is not None else m.nbytes for m in masks)


ONE, TWO = np.ones((1, 1)), np.ones((2, 1))
case(
    "attention",
    _attention,
    _one_by_one,
    _keeps,
    Hard(
        "a query that may see no key gives 0 and passes no gradient",
        (ONE, TWO, TWO),
        np.zeros((1, 1)),
        (0 * ONE, 0 * TWO, 0 * TWO),
        {"mask": A([[False, False]])},
    ),
    Hard(
        "so too when the bias is minus infinity",
        (ONE, TWO, TWO, A([[-inf, -inf]])),
        np.zeros((1, 1)),
        (0 * ONE, 0 * TWO, 0 * TWO, np.zeros((1, 2))),
    ),
    Hard(
        "so too when all keys are padding",
        (ONE[None], TWO[None], TWO[None]),
        np.zeros((1, 1, 1)),
        (0 * ONE[None], 0 * TWO[None], 0 * TWO[None]),
        {"key_padding": A([[False, False]])},
    ),
    Hard(
        "so too when the first of more queries than keys comes before all keys",
        (TWO, ONE, 3 * ONE),
        A([[0.0], [3.0]]),
        (0 * TWO, 0 * ONE, ONE),
        {"causal": True},
    ),
    Hard(
        "what a mask hides does not count, however large",
        (ONE, A([[1.0], [1e30]]), A([[5.0], [1e30]])),
        A([[5.0]]),
        (A([[0.0]]), A([[0.0], [0.0]]), A([[1.0], [0.0]])),
        {"mask": A([[True, False]])},
    ),
    Hard(
        "NaN in a query makes its result NaN, and no other",
        (A([[nan], [0.0]]), TWO, TWO),
        A([[nan], [1.0]]),
        (A([[nan], [0.0]]), A([[nan], [nan]]), A([[nan], [nan]])),
    ),
    Hard(
        "no keys give 0",
        (ONE, np.zeros((0, 1)), np.zeros((0, 1))),
        A([[0.0]]),
        (0 * ONE, np.zeros((0, 1)), np.zeros((0, 1))),
    ),
    Hard(
        "no queries",
        (np.zeros((0, 1)), ONE, ONE),
        np.zeros((0, 1)),
        (np.zeros((0, 1)), 0 * ONE, 0 * ONE),
    ),
    Hard(
        "very large scores without overflow",
        (A([[1e4]]), A([[1.0], [1.0]]), A([[2.0], [4.0]])),
        A([[3.0]]),
        (A([[0.0]]), A([[-5e3], [5e3]]), A([[0.5], [0.5]])),
        {"scale": 1.0},
    ),
    Hard("one key is seen whole", (ONE, ONE, 3 * ONE), 3 * ONE, (0 * ONE, 0 * ONE, ONE)),
    Hard(
        "the last query sees every key",
        (np.zeros((1, 1)), np.zeros((2, 1)), A([[1.0], [3.0]])),
        A([[2.0]]),
        (A([[0.0]]), np.zeros((2, 1)), A([[0.5], [0.5]])),
        {"causal": True},
    ),
)


def _packed(d: Draw) -> Sample:
    B, T, heads, K = d.integer(1, 2), d.integer(1, 4), d.integer(1, 3), d.integer(1, 3)
    attributes: dict[str, Any] = {"heads": heads, "causal": d.boolean()}
    if d.rarely(3):
        attributes["key_padding"] = d.booleans((B, T))
    if d.rarely(3):
        attributes["scale"] = 0.7
    if d.rarely(3):
        attributes |= {"rate": 0.4, "rng": Seed(d.integer(0, 99))}
    if d.rarely(3):
        attributes["window"] = d.integer(1, 4)
    bias = d.array(d.broadcastable((B, heads, T, T))) if d.rarely(2) else None
    differences = d.array((heads, 2 * T - 1)) if bias is None and d.rarely(2) else None
    return Sample((d.array((B, T, 3 * heads * K)), bias, differences), attributes)


def _unpacked(
    qkv: Array,
    bias: Array | None = None,
    differences: Array | None = None,
    *,
    heads: int,
    **attributes: Any,
) -> Any:
    B, T, width = qkv.shape
    q, k, v = qkv.reshape(B, T, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    y = _one_by_one(q, k, v, bias, differences, **attributes)
    return y.swapaxes(1, 2).reshape(B, T, width // 3)


def _packed_keeps(s: Sample) -> int:
    """Inputs, result, probabilities, a sum for each row, and the mask."""
    (qkv, *added), heads = s.inputs, s.attributes["heads"]
    B, T, width = qkv.shape
    padding = s.attributes.get("key_padding")
    rest = sum(0 if x is None else x.nbytes for x in (*added, padding))
    return qkv.nbytes + 8 * (B * T * width // 3 + B * heads * T * (T + 1)) + rest


case(
    "packed_attention",
    _packed,
    _unpacked,
    _packed_keeps,
    Hard(
        "a key that is padding does not count",
        (A([[[0.0, 1.0, 2.0], [0.0, 5.0, 7.0]]]),),
        A([[[2.0], [2.0]]]),
        (A([[[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]),),
        {"heads": 1, "key_padding": A([[True, False]])},
    ),
)


def _crossed(d: Draw) -> Sample:
    B, T, S = d.integer(1, 2), d.integer(1, 4), d.integer(1, 4)
    heads, K = d.integer(1, 3), d.integer(1, 3)
    attributes: dict[str, Any] = {"heads": heads}
    if d.rarely(3):
        attributes["key_padding"] = d.booleans((B, S))
    if d.rarely(3):
        attributes["scale"] = 0.7
    if d.rarely(3):
        attributes |= {"rate": 0.4, "rng": Seed(d.integer(0, 99))}
    return Sample((d.array((B, T, heads * K)), d.array((B, S, 2 * heads * K))), attributes)


def _uncrossed(q: Array, kv: Array, *, heads: int, **attributes: Any) -> Any:
    B, T, D = q.shape
    k, v = kv.reshape(B, kv.shape[1], 2, heads, -1).transpose(2, 0, 3, 1, 4)
    y = _one_by_one(q.reshape(B, T, heads, -1).swapaxes(1, 2), k, v, **attributes)
    return y.swapaxes(1, 2).reshape(B, T, D)


def _crossed_keeps(s: Sample) -> int:
    """Inputs, result, probabilities, a sum for each row, and the mask."""
    (q, kv), heads = s.inputs, s.attributes["heads"]
    rows = len(q) * heads * q.shape[1]
    padding = s.attributes.get("key_padding")
    rest = 0 if padding is None else padding.nbytes
    return 2 * q.nbytes + kv.nbytes + 8 * rows * (kv.shape[1] + 1) + rest


case(
    "packed_cross_attention",
    _crossed,
    _uncrossed,
    _crossed_keeps,
    Hard(
        "a key that is padding does not count",
        (A([[[1.0]]]), A([[[1.0, 2.0], [5.0, 7.0]]])),
        A([[[2.0]]]),
        (A([[[0.0]]]), A([[[0.0, 1.0], [0.0, 0.0]]])),
        {"heads": 1, "key_padding": A([[True, False]])},
    ),
)


def _differences(d: Draw) -> Sample:
    T, S = d.integer(1, 4), d.integer(1, 4)
    return Sample((d.array((d.integer(1, 3), S + T - 1)),), {"queries": T})


def _pairs(x: Array, *, queries: int) -> Array:
    S = x.shape[1] - queries + 1
    rows = [[row[s - t + queries - 1] for s in range(S)] for row in x for t in range(queries)]
    return A(rows).reshape(len(x), queries, S)


case(
    "by_difference",
    _differences,
    _pairs,
    nothing,
    Hard(
        "each difference receives all pairs that have it",
        (A([[1.0, 2.0, 3.0]]),),
        A([[[2.0, 3.0], [1.0, 2.0]]]),
        (A([[1.0, 2.0, 1.0]]),),
        {"queries": 2},
    ),
)
