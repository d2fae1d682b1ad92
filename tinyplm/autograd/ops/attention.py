"""Softmax attention as one op."""

import math
from typing import Any

from ...backend import namespace
from ...errors import ConfigError, DtypeError, ShapeError
from ...kernels.attention import Kept, Rules, attention_forward, attention_pullback
from ...kernels.attention import by_difference as added_by_difference
from ...kernels.dropout import drawn_seed
from ...types import Array, Generator, Pullback
from ..engine import op
from .broadcasting import at_least_float32, kernels_round
from .elementwise import quiet
from .random import check_rate


@op
@kernels_round
@quiet
def attention(
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
    rng: Generator | None = None,
    return_probabilities: bool = False,
) -> tuple[Any, Pullback]:
    """Weighted means of v, with weights softmax(scale q k' + bias) over the keys that may be seen.

    (Vaswani et al., 2017, eq. 1)

    Shapes:
        q: (..., T, K); k: (..., S, K); v: (..., S, J); result: (..., T, J), with at most two
        leading axes. bias: broadcasts to (..., T, S); differences: (H, S + T - 1), H being the last leading axis.
        Both receive their gradient in their own shape.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the scaled scores.
        differences: the same for a bias that depends only on how far a key is from a query: key s and query t of a head
            get its value s - t + T - 1. Not beside a bias.
        causal: query t sees keys up to t + S - T: the last query sees all, as when earlier keys come from a cache.
        window: keys this far from t + S - T, or farther, are not seen, on either side.
        mask: booleans that broadcast to (..., T, S), true where a key may be seen.
        key_padding: booleans (B, S), true where a key is real; B is the first axis of q.
        scale: factor of the scores, 1 / sqrt(K) by default.
        rate: share of the probabilities dropped when rng is given; drawn again in the pullback, never stored.
        rng: source of the dropout; without it nothing is dropped.
        return_probabilities: also return the weights (..., T, S), before dropout, as a second result.

    A query that may see no key gives 0, and passes no gradient.

    Raises:
        ShapeError: the shapes do not fit together.
    """
    check_rate(rate)
    if (
        not 2 <= q.ndim <= 4
        or q.shape[:-2] != k.shape[:-2]
        or k.shape[:-1] != v.shape[:-1]
        or q.shape[-1] != k.shape[-1]
    ):
        raise ShapeError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not fit; expected (..., T, K), "
            "(..., S, K), (..., S, J) with at most two leading axes."
        )
    rules = _rules(causal, window, _allowed(mask, key_padding, q, k), q, scale, rate, rng)
    q4, k4, v4 = _four(q), _four(k), _four(v)
    full = (*q4.shape[:3], k4.shape[2])
    bias4 = _added("attention", bias, differences, full)
    found = attention_forward(q4, k4, v4, bias4, rules, return_probabilities)
    shapes = tuple(None if x is None else x.shape for x in (q, k, v, bias, differences))

    def pullback(g: Any) -> tuple[Any, ...]:
        g_p, xp = None, namespace(q4)
        if return_probabilities:
            g, g_p = g
            g = xp.zeros_like(found.y) if g is None else g
            g_p = None if g_p is None else g_p.reshape(full)
        into = xp.empty_like(q4), xp.empty_like(k4), xp.empty_like(v4)
        g4 = g.reshape(found.y.shape)
        g_bias = attention_pullback(g4, g_p, q4, k4, v4, bias4, rules, found, into)
        return tuple(
            None if s is None else x.reshape(s)
            for x, s in zip((*into, g_bias, g_bias), shapes, strict=True)
        )

    y = found.y.reshape(*q.shape[:-1], v.shape[-1])
    if return_probabilities:
        p = found.p.astype(q.dtype, copy=False)
        return (y, p.reshape(*q.shape[:-1], k.shape[-2])), pullback
    return y, pullback


@op
@kernels_round
@quiet
def packed_attention(
    qkv: Array,
    bias: Array | None = None,
    differences: Array | None = None,
    *,
    heads: int,
    causal: bool = False,
    window: int | None = None,
    key_padding: Array | None = None,
    scale: float | None = None,
    rate: float = 0.0,
    rng: Generator | None = None,
) -> tuple[Array, Pullback]:
    """`attention` of a sequence to itself; queries, keys and values lie side by side as one projection made them.

    Heads are read and written in place: nothing is split, turned or joined.

    Shapes:
        qkv: (B, T, 3 D), with D = heads K; bias: broadcasts to (B, heads, T, T); differences: (heads, 2 T - 1);
        result: (B, T, D).

    Args:
        qkv: queries, keys and values.
        bias: added to the scaled scores.
        differences: the same for a bias by difference of positions, as in `attention`.
        heads: how many.
        causal: a query sees no key after its own position.
        window: keys this far from a query, or farther, are not seen, on either side.
        key_padding: booleans (B, T), true where a key is real.
        scale: factor of the scores, 1 / sqrt(K) by default.
        rate: share of the probabilities dropped when rng is given.
        rng: source of the dropout.

    Raises:
        ShapeError: the last axis of qkv is not three times a multiple of heads, or the bias does not fit.
    """
    check_rate(rate)
    if qkv.ndim != 3 or heads < 1 or qkv.shape[2] % (3 * heads):
        raise ShapeError(
            f"packed_attention: qkv has shape {qkv.shape}, expected (B, T, 3 D) with D a multiple of heads={heads}."
        )
    q, k, v = _heads_of(qkv, 3, heads)
    rules = _rules(causal, window, _allowed(None, key_padding, q, k), q, scale, rate, rng)
    bias4 = _added("packed_attention", bias, differences, (*q.shape[:3], k.shape[2]))
    y, found = _mixed(q, k, v, bias4, rules)

    def pullback(g: Array) -> tuple[Array | None, ...]:
        g_qkv = namespace(g).empty(qkv.shape, q.dtype)
        g_y = _heads_of(g, 1, heads)[0]
        into = tuple(_heads_of(g_qkv, 3, heads))
        g_bias = attention_pullback(g_y, None, q, k, v, bias4, rules, found, into)
        if differences is not None:
            return g_qkv, None, g_bias
        return g_qkv, None if bias is None else g_bias.reshape(bias.shape)

    return y, pullback


@op
@kernels_round
@quiet
def packed_cross_attention(
    q: Array,
    kv: Array,
    *,
    heads: int,
    key_padding: Array | None = None,
    scale: float | None = None,
    rate: float = 0.0,
    rng: Generator | None = None,
) -> tuple[Array, Pullback]:
    """`attention` of one sequence to another; keys and values lie side by side as one projection made them.

    Shapes:
        q: (B, T, D), with D = heads K; kv: (B, S, 2 D); result: (B, T, D).

    Args:
        q: queries.
        kv: keys and values.
        heads: how many.
        key_padding: booleans (B, S), true where a key is real.
        scale: factor of the scores, 1 / sqrt(K) by default.
        rate: share of the probabilities dropped when rng is given.
        rng: source of the dropout.

    Raises:
        ShapeError: q and kv do not fit together, or their last axes are not multiples of heads.
    """
    check_rate(rate)
    if (
        q.ndim != 3 or kv.ndim != 3 or heads < 1 or q.shape[2] % heads
        or len(q) != len(kv) or kv.shape[2] != 2 * q.shape[2]
    ):  # fmt: skip
        raise ShapeError(
            f"packed_cross_attention: q {q.shape} and kv {kv.shape} do not fit; expected (B, T, D) and (B, S, 2 D) "
            f"with D a multiple of heads={heads}."
        )
    (q4,), (k, v) = _heads_of(q, 1, heads), _heads_of(kv, 2, heads)
    rules = _rules(False, None, _allowed(None, key_padding, q4, k), q4, scale, rate, rng)
    y, found = _mixed(q4, k, v, None, rules)

    def pullback(g: Array) -> tuple[Array, Array]:
        xp = namespace(g)
        gq, g_kv = xp.empty(q.shape, q.dtype), xp.empty(kv.shape, kv.dtype)
        into = (_heads_of(gq, 1, heads)[0], *_heads_of(g_kv, 2, heads))
        attention_pullback(_heads_of(g, 1, heads)[0], None, q4, k, v, None, rules, found, into)
        return gq, g_kv

    return y, pullback


@op
@at_least_float32
def by_difference(x: Array, *, queries: int) -> tuple[Array, Pullback]:
    """Values of differences, laid out for pairs of positions: y[h, t, s] = x[h, s - t + T - 1].

    The first value of a row is that of the key farthest before the last query, the last that of the key farthest
    after the first one.

    Shapes:
        x: (H, S + T - 1), T being queries; result: (H, T, S).

    Raises:
        ShapeError: x has another number of axes, or no differences for so many queries.
    """
    if x.ndim != 2 or queries < 1 or x.shape[1] < queries:
        raise ShapeError(
            f"by_difference: x has shape {x.shape}, expected (H, S + T - 1) with T = queries = {queries}."
        )
    xp, (H, count), T = namespace(x), x.shape, queries
    S = count - T + 1
    whole = xp.ascontiguousarray(x)
    row, one = whole.strides
    rows_HTS = xp.lib.stride_tricks.as_strided(whole, (H, T, S), (row, one, one))[:, ::-1]

    return rows_HTS.copy(), added_by_difference


def _heads_of(x: Array, parts: int, heads: int) -> Any:
    """Arrays (B, T, parts heads K) seen as `parts` arrays (B, heads, T, K)."""
    B, T, width = x.shape
    shape = (B, T, parts, heads, width // (parts * heads))
    return x.reshape(shape).transpose(2, 0, 3, 1, 4)


def _mixed(q: Array, k: Array, v: Array, bias: Array | None, rules: Rules) -> tuple[Array, Kept]:
    """Results (B, T, D) of all heads side by side, and what the pullback wants."""
    found = attention_forward(q, k, v, bias, rules, False)
    B, _, T, _ = q.shape
    return found.y.swapaxes(1, 2).reshape(B, T, -1), found


def _added(
    name: str, bias: Array | None, differences: Array | None, full: tuple[int, ...]
) -> Array | None:
    """What is added to scores (B, H, T, S): a bias of four axes, or one by difference (H, S + T - 1), or nothing."""
    if differences is None:
        return None if bias is None else _fits(_four(bias), full, "bias")
    if bias is not None:
        raise ShapeError(f"{name}: both a bias and differences; add one to the other first.")
    _, H, T, S = full
    if differences.shape != (H, S + T - 1):
        raise ShapeError(
            f"{name}: differences has shape {differences.shape}, expected (heads, S + T - 1) = {(H, S + T - 1)} for "
            f"T={T} queries and S={S} keys."
        )
    return differences


def _rules(
    causal: bool,
    window: int | None,
    mask: Array | None,
    q: Array,
    scale: float | None,
    rate: float,
    rng: Generator | None,
) -> Rules:
    """The rules as the kernels want them; a seed is only drawn where something is dropped."""
    if window is not None and window < 1:
        raise ConfigError(
            f"attention: window is {window}; a query sees at least itself: 1 or more."
        )
    return Rules(
        causal=causal,
        mask=mask,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        rate=0.0 if rng is None else rate,
        seed=0 if rng is None or not rate else drawn_seed(rng),
        window=window,
    )


def _four(x: Array) -> Array:
    """X with axes of length one in front until there are four."""
    return x.reshape((1,) * (4 - x.ndim) + x.shape)


def _fits(x: Array, full: tuple[int, ...], name: str) -> Array:
    if any(n not in (1, m) for n, m in zip(x.shape, full, strict=True)):
        raise ShapeError(f"attention: {name} {x.shape} does not broadcast to the scores {full}.")
    return x


def _allowed(mask: Any, key_padding: Any, q: Array, k: Array) -> Array | None:
    """The two masks as one that broadcasts to scores of four axes."""
    xp = namespace(q)
    full = (*_four(q).shape[:3], k.shape[-2])
    allowed = None
    if mask is not None:
        allowed = _fits(_four(_boolean(xp.asarray(mask), "mask")), full, "mask")
    if key_padding is not None:
        real = _boolean(xp.asarray(key_padding), "key_padding")
        if q.ndim < 3 or real.shape != (q.shape[0], k.shape[-2]):
            raise ShapeError(
                f"attention: key_padding has shape {real.shape}, expected (batch, keys) = "
                f"{(q.shape[0], k.shape[-2])}."
            )
        real = _four(real.reshape(q.shape[0], *(1,) * (q.ndim - 2), k.shape[-2]))
        allowed = real if allowed is None else allowed & real
    return allowed


def _boolean(mask: Array, name: str) -> Array:
    if mask.dtype != bool:
        raise DtypeError(
            f"attention: {name} has dtype {mask.dtype}, expected bool: true where a key may be seen."
        )
    return mask
