"""Softmax attention over heads, forward and pullback, tile by tile.

    y = softmax(scale q k' + bias, over the keys that may be seen) v        (Vaswani et al., 2017, eq. 1)

Scores never exist whole: they are made for a tile of batch rows, heads and queries that fits the cache. Small problems
fit one tile, and then its probabilities are kept for the pullback; otherwise they are made again from the logarithm of
each row's sum.

Layout: q (B, H, T, K), k (B, H, S, K), v (B, H, S, J), any strides. With `causal`, query t stands at position
t + S - T, so that the last query sees every key, as it does when earlier keys come from a cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..backend import namespace
from ..types import Array
from .registry import Kernel

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
) -> tuple[Array, Array | None, Array]:
    """Result (B, H, T, J); probabilities (B, H, T, S) if keep or small, else None; log-sum (B, H, T, 1).

    The log-sum of a row that sees nothing is plus infinity, so that its probabilities are 0.
    """
    xp = namespace(q)
    shape = (*q.shape[:3], k.shape[2])
    y = xp.empty((*q.shape[:3], v.shape[3]), q.dtype)
    log_sum = xp.empty((*q.shape[:3], 1), q.dtype)
    tiles = list(_tiles(shape))
    p_all = xp.zeros(shape, q.dtype) if keep or len(tiles) == 1 else None
    for number, (b, h, t) in enumerate(tiles):
        seen = _seen(t, shape, rules)
        p = _scores(q, k, bias, rules, (b, h, t), seen)
        top = p.max(axis=-1, keepdims=True, initial=-np.inf).astype(p.dtype, copy=False)
        top[top == -np.inf] = 0
        p -= top
        xp.exp(p, out=p)
        total = p.sum(axis=-1, keepdims=True)
        blind = total == 0
        total[blind] = 1
        p /= total
        top += xp.log(total)
        top[blind] = np.inf
        log_sum[b, h, t] = top
        if p_all is not None:
            p_all[b, h, t, :seen] = p
        if rules.rate:
            p *= _kept(rules, number, p)
        xp.matmul(p, v[b, h, :seen], out=y[b, h, t])
    return y, p_all, log_sum


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
    log_sum: Array,
) -> tuple[Array, Array, Array, Array | None]:
    """Gradients of q, k, v and bias; g_p is the gradient of the probabilities where they were asked for."""
    xp = namespace(q)
    shape = (*q.shape[:3], k.shape[2])
    gq, gk, gv = xp.zeros(q.shape, q.dtype), xp.zeros(k.shape, k.dtype), xp.zeros(v.shape, v.dtype)
    g_bias = None if bias is None else xp.zeros(bias.shape, bias.dtype)
    for number, (b, h, t) in enumerate(_tiles(shape)):
        seen = _seen(t, shape, rules)
        if p_all is not None:
            p = p_all[b, h, t, :seen]
        else:
            p = _scores(q, k, bias, rules, (b, h, t), seen)
            p -= log_sum[b, h, t]
            xp.exp(p, out=p)
        g_tile, v_tile = g[b, h, t], v[b, h, :seen]
        gs = g_tile @ v_tile.swapaxes(-1, -2)
        if rules.rate:
            kept = _kept(rules, number, p)
            gs *= kept
            kept *= p
            gv[b, h, :seen] += kept.swapaxes(-1, -2) @ g_tile
        else:
            gv[b, h, :seen] += p.swapaxes(-1, -2) @ g_tile
        if g_p is not None:
            gs += g_p[b, h, t, :seen]
        gs -= xp.einsum("bhts,bhts->bht", gs, p)[..., None]
        gs *= p
        if g_bias is not None:
            _add_to_bias(g_bias, gs, (b, h, t), seen)
        gs *= gs.dtype.type(rules.scale)
        gq[b, h, t] = gs @ k[b, h, :seen]
        gk[b, h, :seen] += gs.swapaxes(-1, -2) @ q[b, h, t]
    return gq, gk, gv, g_bias


def _tiles(shape: tuple[int, ...]) -> Iterator[Slices]:
    """Slices of batch, heads and queries, each with at most TILE scores but at least one row."""
    B, H, T, S = shape
    rows = max(1, TILE // max(1, S))
    t_step = min(T, rows) or 1
    h_step = min(H, max(1, rows // t_step)) or 1
    b_step = min(B, max(1, rows // (t_step * h_step))) or 1
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
    return min(S, max(0, t.stop + S - T)) if rules.causal else S


def _scores(q: Array, k: Array, bias: Array | None, rules: Rules, tile: Slices, seen: int) -> Array:
    """Scaled and biased scores of a tile, minus infinity where a key may not be seen."""
    xp = namespace(q)
    b, h, t = tile
    T, S = q.shape[2], k.shape[2]
    s = q[b, h, t] @ k[b, h, :seen].swapaxes(-1, -2)
    s *= s.dtype.type(rules.scale)
    if bias is not None:
        s += bias[_within(bias.shape, tile, seen)]
    if rules.mask is not None:
        allowed = rules.mask[_within(rules.mask.shape, tile, seen)]
        s = xp.where(allowed, s, s.dtype.type(-np.inf))
    if rules.causal:
        first = t.start + S - T  # position of the first query of the tile
        hidden = xp.arange(seen) > xp.arange(first, first + t.stop - t.start)[:, None]
        if xp is np:
            np.copyto(s, -np.inf, where=hidden)
        else:
            s = xp.where(hidden, s.dtype.type(-np.inf), s)
    return s  # type: ignore[no-any-return]


def _within(shape: tuple[int, ...], tile: Slices, seen: int) -> tuple[Any, ...]:
    """A tile of something of four axes that broadcasts to the scores."""
    full = (*tile, slice(0, seen))
    return tuple(s if n > 1 else slice(None) for s, n in zip(full, shape, strict=True))


def _add_to_bias(g_bias: Array, gs: Array, tile: Slices, seen: int) -> None:
    axes = tuple(i for i, n in enumerate(g_bias.shape) if n == 1 and gs.shape[i] != 1)
    place = _within(g_bias.shape, tile, seen)
    g_bias[place] += gs.sum(axis=axes, keepdims=True) if axes else gs


def _kept(rules: Rules, number: int, like: Array) -> Array:
    """Factors of dropout for the tile of this number: 0, or one over the share kept."""
    xp = namespace(like)
    rng = np.random.default_rng([rules.seed, number])
    kept = rng.random(like.shape, dtype=np.float32) >= rules.rate
    scale = 0 if rules.rate == 1 else 1 / (1 - rules.rate)
    return xp.asarray(kept).astype(like.dtype) * like.dtype.type(scale)  # type: ignore[no-any-return]
