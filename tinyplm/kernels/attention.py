"""Softmax attention over heads, forward and pullback, tile by tile.

    y = softmax(scale q k' + bias, over the keys that may be seen) v        (Vaswani et al., 2017, eq. 1)

Scores never exist whole: they are made for a tile of batch rows, heads and queries that fits the cache. Small problems
fit one tile, and then its probabilities are kept for the pullback; otherwise they are made again.

Layout: q (B, H, T, K), k (B, H, S, K), v (B, H, S, J), any strides. With `causal`, query t stands at position
t + S - T, so that the last query sees every key, as it does when earlier keys come from a cache.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..backend import namespace
from ..types import Array
from .registry import Kernel
from .softmax import score_softmax, score_softmax_pullback
from .threads import LEAST, share

TILE = 1 << 20
"""Scores in one tile: 4 MB of float32, about what a core's cache holds."""

Slices = tuple[slice, slice, slice]


class Rules(NamedTuple):
    """Who sees whom, and what happens to the scores.

    Attributes:
        causal: a query sees no key after its own position.
        mask: booleans that broadcast to (B, H, T, S), true where a key may be seen; or None.
        scale: factor of the scores.
        rate: share of probabilities dropped.
        seed: of the dropout; the same seed drops the same.
    """

    causal: bool
    mask: Array | None
    scale: float
    rate: float = 0.0
    seed: int = 0


@Kernel
def attention_forward(
    q: Array, k: Array, v: Array, bias: Array | None, rules: Rules, keep: bool
) -> tuple[Array, Array | None]:
    """Result (B, H, T, J), and the probabilities (B, H, T, S) if keep or small, else None."""
    xp = namespace(q)
    shape = (*q.shape[:3], k.shape[2])
    y = xp.empty((*q.shape[:3], v.shape[3]), q.dtype)
    keep = keep or math.prod(shape) <= TILE
    p_all = xp.zeros(shape, q.dtype) if keep else None

    def part(start: int, stop: int) -> None:
        for b, h, t in _tiles(shape, start, stop):
            p, seen = _probabilities(q, k, bias, rules, (b, h, t))
            if p_all is not None:
                p_all[b, h, t, :seen] = p
            if rules.rate:
                p *= _kept(rules, (b, h, t), p)
            xp.matmul(p, v[b, h, :seen], out=y[b, h, t])

    _share(shape, xp, part)
    return y, p_all


@Kernel
def attention_pullback(
    g: Array,
    g_p: Array | None,
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    rules: Rules,
    p_all: Array | None,
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of q, k, v and bias; g_p is that of the probabilities, where they were asked for."""
    xp = namespace(q)
    shape = (*q.shape[:3], k.shape[2])
    gq, gk, gv = xp.zeros(q.shape, q.dtype), xp.zeros(k.shape, k.dtype), xp.zeros(v.shape, v.dtype)
    g_bias = None if bias is None else xp.zeros(bias.shape, bias.dtype)

    def part(start: int, stop: int) -> None:
        for b, h, t in _tiles(shape, start, stop):
            if p_all is None:
                p, seen = _probabilities(q, k, bias, rules, (b, h, t))
            else:
                seen = _seen(t, shape, rules)
                p = p_all[b, h, t, :seen]
            g_tile = g[b, h, t]
            gs = _product(g_tile, v[b, h, :seen].swapaxes(-1, -2))
            used = p
            if rules.rate:
                kept = _kept(rules, (b, h, t), p)
                gs *= kept
                used = p * kept
            _add_product(gv[b, h, :seen], used.swapaxes(-1, -2), g_tile, fresh=t.start == 0)
            if g_p is not None:
                gs += g_p[b, h, t, :seen]
            # A bias is added to scores that are scaled already: its gradient comes before the scale.
            scale = rules.scale if g_bias is None else 1.0
            score_softmax_pullback(_groups(gs), _groups(p), scale)
            if g_bias is not None:
                _add_to_bias(g_bias, gs, (b, h, t), seen)
                gs *= gs.dtype.type(rules.scale)
            xp.matmul(gs, k[b, h, :seen], out=gq[b, h, t])
            _add_product(gk[b, h, :seen], gs.swapaxes(-1, -2), q[b, h, t], fresh=t.start == 0)

    if g_bias is None:
        _share(shape, xp, part)
    else:  # all tiles add to one bias
        part(0, shape[0])
    return gq, gk, gv, g_bias


def _share(shape: tuple[int, ...], xp: Any, part: Callable[[int, int], None]) -> None:
    """Share the rows of the batch between threads where there is enough to do."""
    scores = math.prod(shape[1:])
    if xp is np:
        share(shape[0], part, least=-(-LEAST // max(1, 4 * scores)))  # a score costs as four values
    else:
        part(0, shape[0])


def _add_product(total: Array, a: Array, b: Array, *, fresh: bool) -> None:
    """Add a @ b to total, which is still zero if fresh."""
    if fresh:
        namespace(a).matmul(a, b, out=total)
    else:
        total += a @ b


def _tiles(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Slices]:
    """Slices of batch rows from start to stop, heads and queries, each of at most TILE scores or one row of them."""
    _, H, T, S = shape
    rows = max(1, TILE // max(1, S))
    t_step = min(T, rows) or 1
    h_step = min(H, max(1, rows // t_step)) or 1
    b_step = max(1, rows // (t_step * h_step))
    for b in range(start, stop, b_step):
        for h in range(0, H, h_step):
            for t in range(0, T, t_step):
                yield (
                    slice(b, min(stop, b + b_step)),
                    slice(h, h + h_step),
                    slice(t, min(T, t + t_step)),
                )


def _seen(t: slice, shape: tuple[int, ...], rules: Rules) -> int:
    """How many keys the last query of a tile can see at most."""
    T, S = shape[2:]
    return min(S, max(0, t.stop + S - T)) if rules.causal else S


def _probabilities(
    q: Array, k: Array, bias: Array | None, rules: Rules, tile: Slices
) -> tuple[Array, int]:
    """Probabilities of a tile over the first keys, and how many keys those are."""
    xp = namespace(q)
    b, h, t = tile
    S = k.shape[2]
    seen = _seen(t, (*q.shape[:3], S), rules)
    s = _product(q[b, h, t], k[b, h, :seen].swapaxes(-1, -2))
    scale = rules.scale
    if bias is not None:
        s *= s.dtype.type(scale)
        s += bias[_within(bias.shape, tile, seen)]
        scale = 1.0
    if rules.mask is not None:
        hidden = ~rules.mask[_within(rules.mask.shape, tile, seen)]
        xp.copyto(s, s.dtype.type(-np.inf), where=hidden)
    first = t.start + S - q.shape[2] if rules.causal else S
    score_softmax(_groups(s), scale, first)
    return s, seen


def _product(a: Array, b: Array) -> Array:
    """A @ b in row-major order, which NumPy only gives for operands that are in it too."""
    xp = namespace(a)
    return xp.matmul(a, b, out=xp.empty((*a.shape[:-1], b.shape[-1]), a.dtype))


def _groups(s: Array) -> Array:
    """Scores (B, H, T, S) as (B H, T, S), without a copy, so that they can be changed in place."""
    return s.reshape(s.shape[0] * s.shape[1], *s.shape[2:])


def _within(shape: tuple[int, ...], tile: Slices, seen: int) -> tuple[Any, ...]:
    """A tile of something of four axes that broadcasts to the scores."""
    full = (*tile, slice(0, seen))
    return tuple(s if n > 1 else slice(None) for s, n in zip(full, shape, strict=True))


def _add_to_bias(g_bias: Array, gs: Array, tile: Slices, seen: int) -> None:
    axes = tuple(i for i, n in enumerate(g_bias.shape) if n == 1 and gs.shape[i] != 1)
    place = _within(g_bias.shape, tile, seen)
    g_bias[place] += gs.sum(axis=axes, keepdims=True) if axes else gs


def _kept(rules: Rules, tile: Slices, like: Array) -> Array:
    """Factors of dropout for a tile: 0, or one over the share kept. Each batch row draws for itself."""
    xp = namespace(like)
    b, h, t = tile
    drawn = [
        np.random.default_rng([rules.seed, row, h.start, t.start]).random(
            like.shape[1:], np.float32
        )
        for row in range(b.start, b.stop)
    ]
    kept = np.stack(drawn) >= rules.rate
    scale = 0 if rules.rate == 1 else 1 / (1 - rules.rate)
    return xp.asarray(kept).astype(like.dtype) * like.dtype.type(scale)
