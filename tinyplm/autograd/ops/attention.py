"""Softmax attention as one op."""

import math
from typing import Any

from ...backend import namespace
from ...errors import DtypeError, ShapeError
from ...kernels.attention import Rules, attention_forward, attention_pullback
from ...types import Array, Generator, Pullback
from ..engine import op
from .broadcasting import at_least_float32
from .elementwise import quiet
from .random import check_rate


@op
@at_least_float32
@quiet
def attention(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    *,
    causal: bool = False,
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
        leading axes. bias: broadcasts to (..., T, S), and receives its gradient in its own shape.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the scaled scores; positions, for example.
        causal: query t sees keys up to t + S - T: the last query sees all, as when earlier keys come from a cache.
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
    seed = 0
    if rng is None:
        rate = 0.0
    elif rate:
        seed = int(rng.integers(1 << 63))
    rules = Rules(
        causal=causal,
        mask=_allowed(mask, key_padding, q, k),
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        rate=rate,
        seed=seed,
    )
    q4, k4, v4 = _four(q), _four(k), _four(v)
    full = (*q4.shape[:3], k4.shape[2])
    bias4 = None if bias is None else _fits(_four(bias), full, "bias")
    y, p = attention_forward(q4, k4, v4, bias4, rules, return_probabilities)
    shapes = tuple(None if x is None else x.shape for x in (q, k, v, bias))
    y_shape = y.shape

    def pullback(g: Any) -> tuple[Any, ...]:
        g_p = None
        if return_probabilities:
            g, g_p = g
            g = namespace(q4).zeros(y_shape, q4.dtype) if g is None else g
            g_p = None if g_p is None else g_p.reshape(full)
        given = attention_pullback(g.reshape(y_shape), g_p, q4, k4, v4, bias4, rules, p)
        return tuple(
            None if x is None else x.reshape(s) for x, s in zip(given, shapes, strict=True)
        )

    y = y.reshape(*q.shape[:-1], v.shape[-1])
    if return_probabilities:
        return (y, p.reshape(*q.shape[:-1], k.shape[-2])), pullback
    return y, pullback


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
