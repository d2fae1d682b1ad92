"""Softmax attention over heads, forward and pullback, tile by tile.

    y = softmax(scale q k' + bias, over the keys that may be seen) v        (Vaswani et al., 2017, eq. 1)

Scores never exist whole: they are made for a tile of queries that fits the cache. Small problems keep their
probabilities for the pullback; otherwise these are made again, from the scores and the logarithm of each row's sum.
Here is the definition; attention_compiled.py has it compiled for a processor, attention_cuda.py for a card.

Layout: q (B, H, T, K), k (B, H, S, K), v (B, H, S, J), any strides. Query t stands at position t + S - T, so that
with `causal` the last one sees every key, as it does when earlier keys come from a cache.

A bias has four axes that broadcast to (B, H, T, S); or two, (H, S + T - 1), if it depends only on how far a key is from
a query: key s and query t get value s - t + T - 1 of their head. Its gradient has its shape.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..backend import namespace
from ..types import Array
from .dropout import scale
from .philox import kept, threshold
from .registry import Kernel
from .softmax import score_softmax, score_softmax_pullback

TILE = 1 << 20
"""Scores in one tile of the definition, and most that are kept: 4 MB of float32."""

Slices = tuple[slice, slice, slice]


class Rules(NamedTuple):
    """Who sees whom, and what happens to the scores.

    Attributes:
        causal: a query sees no key after its own position.
        mask: booleans that broadcast to (B, H, T, S), true where a key may be seen; or None.
        scale: factor of the scores.
        rate: share of probabilities dropped.
        seed: of the dropout; the same seed drops the same. While a graph is captured, an array that holds it.
        window: keys this far from a query's position, or farther, are not seen, on either side; or None.
    """

    causal: bool
    mask: Array | None
    scale: float
    rate: float = 0.0
    seed: Any = 0
    window: int | None = None

    def reach(self, T: int, S: int) -> tuple[int, int]:
        """How many positions a query sees back and ahead, its own included in both; as bounds where all are seen."""
        far = S + T if self.window is None else self.window
        return far, 1 if self.causal else far


class Kept(NamedTuple):
    """What the forward pass keeps for the pullback.

    Attributes:
        y: the result.
        p: probabilities (B, H, T, S) before dropout, where they are asked for or few.
        log_sum: (B H T,), the logarithm of each row's sum of exponentials, where the variant wants it.
    """

    y: Array
    p: Array | None
    log_sum: Array | None


@Kernel
def attention_forward(
    q: Array, k: Array, v: Array, bias: Array | None, rules: Rules, keep: bool
) -> Kept:
    """Result (B, H, T, J), which lies in memory as (B, T, H, J); and the probabilities if keep or few.

    Halves of a card that no variant takes are widened, here and in the pullback; probabilities stay float32.
    """
    xp = namespace(q)
    if xp is not np and q.dtype.itemsize == 2:
        found = attention_forward(*map(_wide, (q, k, v, bias)), rules, keep)
        return Kept(found.y.astype(q.dtype), found.p, found.log_sum)
    (B, H, T, _), (S, J) = q.shape, v.shape[2:]
    shape = (B, H, T, S)
    y = xp.empty((B, T, H, J), q.dtype).swapaxes(1, 2)
    keep = keep or are_few(shape)
    p_all = xp.zeros(shape, q.dtype) if keep else None
    pairs = None if bias is None else of_pairs(bias, shape)
    for b, h, t in _tiles(shape):
        p, seen = _probabilities(q, k, pairs, rules, (b, h, t))
        if p_all is not None:
            p_all[b, h, t, :seen] = p
        if rules.rate:
            p *= _factors(rules, (b, h, t), shape, p)
        y[b, h, t] = p @ v[b, h, :seen]
    return Kept(y, p_all, None)


@Kernel
def attention_pullback(
    g: Array,
    g_p: Array | None,
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    rules: Rules,
    found: Kept,
    into: tuple[Array, Array, Array],
) -> Array | None:
    """Write the gradients of q, k and v; return that of bias. g_p is that of the probabilities, where asked for."""
    xp = namespace(q)
    if xp is not np and q.dtype.itemsize == 2:
        made = tuple(xp.empty(x.shape, np.float32) for x in into)
        found = found._replace(y=_wide(found.y))
        g_bias = attention_pullback(*map(_wide, (g, g_p, q, k, v, bias)), rules, found, made)
        for to, x in zip(into, made, strict=True):
            to[...] = x
        return g_bias
    shape = (*q.shape[:3], k.shape[2])
    gq, gk, gv = into
    gq[...], gk[...], gv[...] = 0, 0, 0
    pairs = None if bias is None else of_pairs(bias, shape)
    g_pairs = None if pairs is None else xp.zeros(pairs.shape, pairs.dtype)
    for b, h, t in _tiles(shape):
        if found.p is None:
            p, seen = _probabilities(q, k, pairs, rules, (b, h, t))
        else:
            seen = _seen(t, shape, rules)
            p = found.p[b, h, t, :seen]
        g_tile = g[b, h, t]
        gs = _product(g_tile, v[b, h, :seen].swapaxes(-1, -2))
        used = p
        if rules.rate:
            factors = _factors(rules, (b, h, t), shape, p)
            gs *= factors
            used = p * factors
        gv[b, h, :seen] += used.swapaxes(-1, -2) @ g_tile
        if g_p is not None:
            gs += g_p[b, h, t, :seen]
        # A bias is added to scores that are scaled already: its gradient comes before the scale.
        score_softmax_pullback(_groups(gs), _groups(p), rules.scale if g_pairs is None else 1.0)
        if g_pairs is not None:
            _add_to_bias(g_pairs, gs, (b, h, t), seen)
            gs *= gs.dtype.type(rules.scale)
        gq[b, h, t] = gs @ k[b, h, :seen]
        gk[b, h, :seen] += gs.swapaxes(-1, -2) @ q[b, h, t]
    if g_pairs is None or bias is None or bias.ndim == 4:
        return g_pairs
    return by_difference(g_pairs[0])


def are_few(shape: tuple[int, ...]) -> bool:
    """Whether there are so few scores that their probabilities are kept unasked."""
    return math.prod(shape) <= TILE


def _wide(x: Array | None) -> Any:
    return x if x is None else x.astype(np.float32, copy=False)


def _tiles(shape: tuple[int, ...]) -> Iterator[Slices]:
    """Slices of batch rows, heads and queries, each of at most TILE scores or one row of them."""
    B, H, T, S = shape
    rows = max(1, TILE // max(1, S))
    t_step = min(T, rows) or 1
    h_step = min(H, max(1, rows // t_step)) or 1
    b_step = max(1, rows // (t_step * h_step))
    for b in range(0, B, b_step):
        for h in range(0, H, h_step):
            for t in range(0, T, t_step):
                yield (
                    slice(b, b + b_step),
                    slice(h, h + h_step),
                    slice(t, min(T, t + t_step)),
                )


def _seen(t: slice, shape: tuple[int, ...], rules: Rules) -> int:
    """How many keys the last query of a tile can see at most."""
    T, S = shape[2:]
    return min(S, max(0, t.stop - 1 + S - T + rules.reach(T, S)[1]))


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
    if bias is not None or scale <= 0:  # which would not leave minus infinity as it is
        s *= s.dtype.type(scale)
        scale = 1.0
    if bias is not None:
        s += bias[_within(bias.shape, tile, seen)]
    if rules.mask is not None:
        hidden = ~rules.mask[_within(rules.mask.shape, tile, seen)]
        xp.copyto(s, s.dtype.type(-np.inf), where=hidden)
    back, ahead = rules.reach(q.shape[2], S)
    first, last = t.start + S - q.shape[2], t.stop - 1 + S - q.shape[2]  # positions
    if last >= back:
        too_far = xp.arange(seen) <= xp.arange(first, last + 1)[:, None] - back
        xp.copyto(s, s.dtype.type(-np.inf), where=too_far)
    score_softmax(_groups(s), scale, first + ahead - 1)
    return s, seen


def of_pairs(bias: Array, shape: tuple[int, ...]) -> Array:
    """A bias of four axes; one by difference is seen as that of all pairs, without a copy."""
    if bias.ndim == 4:
        return bias
    xp, (row, one), (H, T, S) = namespace(bias), bias.strides, shape[1:]
    # The last query comes first in it.
    return xp.lib.stride_tricks.as_strided(bias, (1, H, T, S), (0, row, one, one))[:, :, ::-1]


def by_difference(g: Array) -> Array:
    """What belongs to pairs (H, T, S), added up for each difference: (H, S + T - 1)."""
    xp, (H, T, S) = namespace(g), g.shape
    # Read as rows that are one shorter, each row of S values and T zeros is shifted against the one before.
    wide = xp.zeros((H, T, S + T), g.dtype)
    wide[:, :, :S] = g[:, ::-1]
    shifted = wide.reshape(H, -1)[:, : T * (S + T - 1)].reshape(H, T, S + T - 1)
    total: Array = shifted.sum(axis=1)
    return total


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


def _factors(rules: Rules, tile: Slices, shape: tuple[int, ...], like: Array) -> Array:
    """Factors of dropout for a tile: 0, or one over the share kept."""
    xp = namespace(like)
    b, h, t = (
        xp.arange(*part.indices(n), dtype=np.int64) for part, n in zip(tile, shape, strict=False)
    )
    heads = b[:, None, None] * shape[1] + h[:, None]
    stays = kept(rules.seed, heads, t, like.shape[-1], threshold(rules.rate))
    return stays.astype(like.dtype) * like.dtype.type(scale(rules.rate))


from . import attention_compiled, attention_cuda  # noqa: E402, F401 - register what Numba and a card have
