"""Softmax along one axis; and of attention scores, in place; with the pullbacks."""

from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import cut, exponential, is_float, largest, parallel, plus
from .registry import Kernel
from .threads import LEAST


def highest(x: Array, axis: int | tuple[int, ...]) -> Array:
    """The largest value along axes, which stay with length one; minus infinity where there is none."""
    if namespace(x) is np:
        return x.max(axis=axis, keepdims=True, initial=-np.inf).astype(x.dtype, copy=False)
    if x.size:  # CuPy's max knows no initial value
        return x.max(axis=axis, keepdims=True)
    axes = np.lib.array_utils.normalize_axis_tuple(axis, x.ndim)
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    return namespace(x).full(shape, -np.inf, x.dtype)


@Kernel
def softmax_forward(x: Array, axis: int) -> Array:
    """Exponentials along axis over their sum; 0 where everything along the axis is minus infinity."""
    xp = namespace(x)
    top = highest(x, axis)
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
    top_GT1 = highest(s_GTS, -1)
    xp.copyto(top_GT1, s_GTS.dtype.type(0), where=top_GT1 == -np.inf)
    s_GTS -= top_GT1
    xp.exp(s_GTS, out=s_GTS)
    total_GT1 = s_GTS.sum(axis=-1, keepdims=True)
    xp.copyto(total_GT1, s_GTS.dtype.type(1), where=total_GT1 == 0)
    s_GTS /= total_GT1


@Kernel
def score_softmax_pullback(g_GTS: Array, p_GTS: Array, scale: float) -> None:
    """Turn the gradient of probabilities p into that of the scores before scaling, in place: scale p (g - sum(g p))."""
    xp = namespace(g_GTS)
    g_GTS -= xp.einsum("gts,gts->gt", g_GTS, p_GTS)[..., None]
    g_GTS *= p_GTS
    g_GTS *= g_GTS.dtype.type(scale)


# In the bodies an array of results may be None, and then they are written in place.


def _softmax_part(
    team: Any,
    part: int,
    start: int,
    stop: int,
    x: Any,
    factor: Any,
    first: int,
    period: int,
    y: Any,
) -> None:
    kind = x.dtype.type
    width = x.shape[1]
    for r in range(start, stop):
        given = cut(x, r * width, width)
        row = given if y is None else cut(y, r * width, width)
        seen = min(width, max(0, first + r % period + 1))
        if y is None:
            for j in range(seen):
                given[j] *= factor
        top = largest(cut(given, 0, seen))
        if top == kind(-np.inf):  # nothing was seen that is larger: minus infinities only, or NaN
            blank = kind(0)
            for j in range(seen):
                blank = blank if given[j] == given[j] else given[j]
            for j in range(width):
                row[j] = blank
            continue
        for j in range(seen):
            row[j] = exponential(given[j] - top)
        total = kind(0)
        for j in range(seen):  # on its own: see `parallel`
            total = plus(total, row[j])
        each = kind(1) / total
        for j in range(seen):
            row[j] *= each
        for j in range(seen, width):
            row[j] = kind(0)


def _pullback_part(
    team: Any, part: int, start: int, stop: int, g: Any, p: Any, factor: Any, out: Any
) -> None:
    width = g.shape[1]
    for r in range(start, stop):
        given, shares = g[r], p[r]
        along = g.dtype.type(0)
        for j in range(width):
            along = plus(along, given[j] * shares[j])
        if out is None:
            for j in range(width):
                given[j] = factor * shares[j] * (given[j] - along)
        else:
            row = out[r]
            for j in range(width):
                row[j] = shares[j] * (given[j] - along)


@softmax_forward.variant(
    "numba", library="numpy", when=lambda x, axis: is_float(x) and axis in (-1, x.ndim - 1)
)
def _numba_forward() -> Any:
    """Each row of the last axis stays in cache."""
    run = parallel(_softmax_part)
    if run is None:
        return None

    def forward(x: Array, axis: int) -> Array:
        y = np.empty_like(x)
        width = x.shape[-1]
        if x.size:
            rows = x.reshape(-1, width), x.dtype.type(1), width, 1, y.reshape(-1, width)
            run(x.size // width, *rows, least=-(-LEAST // width))
        return y

    return forward


@softmax_pullback.variant(
    "numba", library="numpy", when=lambda g, y, axis: is_float(g, y) and axis in (-1, y.ndim - 1)
)
def _numba_pullback() -> Any:
    """One visit to each row of the last axis."""
    run = parallel(_pullback_part)
    if run is None:
        return None

    def pullback(g: Array, y: Array, axis: int) -> Array:
        gx = np.empty_like(y)
        width = y.shape[-1]
        if y.size:
            rows = (a.reshape(-1, width) for a in (g, y))
            run(
                y.size // width,
                *(*rows, y.dtype.type(1), gx.reshape(-1, width)),
                least=-(-LEAST // width),
            )
        return gx

    return pullback


@score_softmax.variant("numba", library="numpy", when=lambda s, *_: is_float(s))
def _numba_scores() -> Any:
    """Each row stays in cache, and what it may not see is never computed."""
    run = parallel(_softmax_part)
    if run is None:
        return None

    def scores(s_GTS: Array, scale: float, first: int) -> None:
        G, T, S = s_GTS.shape
        if s_GTS.size:
            rows = s_GTS.reshape(G * T, S), s_GTS.dtype.type(scale), first, T, None
            run(G * T, *rows, least=-(-LEAST // S))

    return scores


@score_softmax_pullback.variant("numba", library="numpy", when=lambda g, p, _: is_float(g, p))
def _numba_scores_pullback() -> Any:
    """One visit to each row."""
    run = parallel(_pullback_part)
    if run is None:
        return None

    def pullback(g_GTS: Array, p_GTS: Array, scale: float) -> None:
        G, T, S = g_GTS.shape
        if g_GTS.size:
            rows = g_GTS.reshape(G * T, S), p_GTS.reshape(G * T, S), g_GTS.dtype.type(scale), None
            run(G * T, *rows, least=-(-LEAST // S))

    return pullback


def _last(x: Array, axis: int) -> bool:
    return x.ndim > 0 and axis in (-1, x.ndim - 1) and x.size > 0


@softmax_forward.variant(
    "cuda", library="cupy", when=lambda x, axis: _last(x, axis) and cuda.takes(x)
)
def _cuda_forward() -> Any:
    """A team of threads for each row, which is held in registers if it fits."""

    def forward(x: Array, axis: int) -> Array:
        y, width = cuda.empty(x, x.shape), x.shape[-1]
        _start_rows("softmax_forward", x.size // width, width, (x, y), 1.0, width, 1)
        return y

    return forward if cuda.usable() else None


@softmax_pullback.variant(
    "cuda", library="cupy", when=lambda g, y, axis: _last(y, axis) and cuda.takes(g, y)
)
def _cuda_pullback() -> Any:
    """As forward."""

    def pullback(g: Array, y: Array, axis: int) -> Array:
        gx, width = cuda.empty(y, y.shape), y.shape[-1]
        _start_rows("softmax_pullback", y.size // width, width, (g, y, gx), 1.0)
        return gx

    return pullback if cuda.usable() else None


@score_softmax.variant("cuda", library="cupy", when=lambda s, *_: s.size > 0 and cuda.takes(s))
def _cuda_scores() -> Any:
    """As softmax_forward, in place."""

    def scores(s_GTS: Array, scale: float, first: int) -> None:
        G, T, S = s_GTS.shape
        _start_rows("softmax_forward", G * T, S, (s_GTS, s_GTS), float(scale), first, T)

    return scores if cuda.usable() else None


@score_softmax_pullback.variant(
    "cuda", library="cupy", when=lambda g, p, _: g.size > 0 and cuda.takes(g, p)
)
def _cuda_scores_pullback() -> Any:
    """As softmax_pullback, in place."""

    def pullback(g_GTS: Array, p_GTS: Array, scale: float) -> None:
        G, T, S = g_GTS.shape
        _start_rows("softmax_pullback", G * T, S, (g_GTS, p_GTS, g_GTS), float(scale))

    return pullback if cuda.usable() else None


def _start_rows(
    kernel: str, rows: int, width: int, arrays: tuple[Array, ...], *numbers: Any
) -> None:
    shape = cuda.rows(width, *arrays)
    cuda.launch(
        "softmax", f"{kernel}_{arrays[0].dtype.name}_{shape.name}",
        -(-rows // shape.teams), cuda.THREADS, *arrays, rows, width, *numbers,
    )  # fmt: skip
