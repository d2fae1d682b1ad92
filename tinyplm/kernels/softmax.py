"""Softmax along one axis; and of attention scores, in place; with the pullbacks."""

from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from .compiled import exp32, is_single, jit
from .registry import Kernel


@Kernel
def softmax_forward(x: Array, axis: int) -> Array:
    """Exponentials along axis over their sum; 0 where everything along the axis is minus infinity."""
    xp = namespace(x)
    top = x.max(axis=axis, keepdims=True, initial=-np.inf).astype(x.dtype, copy=False)
    e = x - xp.where(top == -np.inf, x.dtype.type(0), top)
    xp.exp(e, out=e)
    total = e.sum(axis=axis, keepdims=True)
    e /= xp.where(total == 0, x.dtype.type(1), total)
    return e


@Kernel
def softmax_pullback(g: Array, y: Array, axis: int) -> Array:
    """Y (g - sum(g y))."""
    gy = g * y
    gy -= y * gy.sum(axis=axis, keepdims=True)
    return gy


@Kernel
def score_softmax(s_GTS: Array, scale: float, first: int) -> None:
    """Turn scores into probabilities in place.

    Scores are multiplied by scale. Row t of a group sees the columns up to first + t; pass a first
    of S or more to let it see all. A row that sees nothing, or minus infinities only, becomes 0.
    """
    xp = namespace(s_GTS)
    T, S = s_GTS.shape[1:]
    s_GTS *= s_GTS.dtype.type(scale)
    if first < S - 1:
        hidden_TS = xp.arange(S) > xp.arange(first, first + T)[:, None]
        xp.copyto(s_GTS, s_GTS.dtype.type(-np.inf), where=hidden_TS)
    top_GT1 = s_GTS.max(axis=-1, keepdims=True, initial=-np.inf).astype(s_GTS.dtype, copy=False)
    top_GT1[top_GT1 == -np.inf] = 0
    s_GTS -= top_GT1
    xp.exp(s_GTS, out=s_GTS)
    total_GT1 = s_GTS.sum(axis=-1, keepdims=True)
    total_GT1[total_GT1 == 0] = 1
    s_GTS /= total_GT1


@Kernel
def score_softmax_pullback(g_GTS: Array, p_GTS: Array, scale: float) -> None:
    """Turn the gradient of probabilities p into that of the scores before scaling, in place: scale p (g - sum(g p))."""
    xp = namespace(g_GTS)
    g_GTS -= xp.einsum("gts,gts->gt", g_GTS, p_GTS)[..., None]
    g_GTS *= p_GTS
    g_GTS *= g_GTS.dtype.type(scale)


def _score_loop(s: Array, scale: Any, first: int) -> None:
    G, T, S = s.shape
    low = np.float32(-np.inf)
    lanes = np.empty(16, np.float32)  # a maximum is only vectorised when it is several at once
    for g in range(G):
        for t in range(T):
            seen = min(S, max(0, first + t + 1))
            row = s[g, t]
            lanes[:] = low
            whole = seen - seen % 16
            for j in range(0, whole, 16):
                for k in range(16):
                    x = row[j + k] * scale
                    row[j + k] = x
                    lanes[k] = x if x > lanes[k] else lanes[k]
            top = low
            for j in range(whole, seen):
                row[j] *= scale
                top = max(top, row[j])
            for k in range(16):
                top = max(top, lanes[k])
            if top == low:  # nothing was seen that is larger: minus infinities only, or NaN
                blank = np.float32(0)
                for j in range(seen):
                    blank = blank if row[j] == row[j] else row[j]
                row[:] = blank
                continue
            total = np.float32(0)
            for j in range(seen):
                e = exp32(row[j] - top)
                row[j] = e
                total += e
            part = np.float32(1) / total
            for j in range(seen):
                row[j] *= part
            for j in range(seen, S):
                row[j] = np.float32(0)


def _score_pullback_loop(g: Array, p: Array, scale: Any) -> None:
    R, S = g.shape
    for r in range(R):
        along = np.float32(0)
        for j in range(S):
            along += g[r, j] * p[r, j]
        for j in range(S):
            g[r, j] = scale * p[r, j] * (g[r, j] - along)


@score_softmax.variant("numba", library="numpy", when=lambda s, *_: is_single(s))
def _numba_scores() -> Any:
    """Each row stays in cache, and what it may not see is never computed."""
    loop = jit(_score_loop, exp32)
    if loop is None:
        return None

    def scores(s_GTS: Array, scale: float, first: int) -> None:
        loop(s_GTS, np.float32(scale), first)

    return scores


@score_softmax_pullback.variant("numba", library="numpy", when=lambda g, p, _: is_single(g, p))
def _numba_scores_pullback() -> Any:
    """One visit to each row."""
    loop = jit(_score_pullback_loop)
    if loop is None:
        return None

    def pullback(g_GTS: Array, p_GTS: Array, scale: float) -> None:
        G, T, S = g_GTS.shape
        loop(g_GTS.reshape(G * T, S), p_GTS.reshape(G * T, S), np.float32(scale))

    return pullback
