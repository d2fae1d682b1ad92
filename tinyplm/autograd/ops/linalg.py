"""Products of matrices."""

from collections import Counter
from typing import Any

import numpy as np

from ...backend import namespace
from ...errors import ConfigError, ShapeError
from ...kernels import cuda
from ...kernels.gelu import gelu_pullback, gelu_tanh_pullback
from ...kernels.matmul import (
    linear_gelu_in_precision,
    linear_in_precision,
    product,
    product_gelu_pullback,
    product_in_precision,
    sum_rows,
)
from ...kernels.precision import prepare
from ...types import Array, Pullback
from ..engine import Tensor, op
from .broadcasting import (
    at_least_float32,
    is_half,
    kernels_round,
    like,
    same_precision,
    unbroadcast,
)
from .elementwise import quiet


@op
@kernels_round
def matmul(a: Array, b: Array) -> tuple[Array, Pullback]:
    """Product over the last axis of a and the one before last of b; leading axes broadcast.

    A vector stands for a row on the left and for a column on the right, as in NumPy.
    """
    y = same_precision(_times(a, b), a, b)
    like_a, like_b = like(a), like(b)

    def by_a(g: Array) -> Any:
        if b.ndim == 1:
            return unbroadcast(g[..., None] * b, like_a)
        if a.ndim == 1:
            return unbroadcast(_times(b, g[..., None])[..., 0], like_a)
        return unbroadcast(_times(g, b.swapaxes(-1, -2)), like_a)

    def by_b(g: Array) -> Any:
        if a.ndim == 1:
            return unbroadcast(a[:, None] * g[..., None, :] if b.ndim > 1 else a * g, like_b)
        if b.ndim == 1:
            return unbroadcast(g[..., None] * a, like_b)
        return unbroadcast(_times(a.swapaxes(-1, -2), g), like_b)

    return y, lambda g: (lambda: by_a(g), lambda: by_b(g))


def _times(a: Array, b: Array) -> Array:
    """A b; on a card by a kernel of ours, of three axes at most: CuPy's refuses bfloat16 of more than two."""
    if namespace(a) is np or not a.ndim or not b.ndim:
        return a @ b
    left, right = a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    found: Array = product(_matrices(left, batch), _matrices(right, batch))
    rows, columns = left.shape[-2:-1] * (a.ndim > 1), right.shape[-1:] * (b.ndim > 1)
    return found.reshape((*batch, *rows, *columns))


def _matrices(a: Array, batch: tuple[int, ...]) -> Array:
    """One for each place of a batch, or a single one for all."""
    matrix = a.shape[-2:]
    if a.size == matrix[0] * matrix[1]:
        return a.reshape(matrix)
    return namespace(a).broadcast_to(a, (*batch, *matrix)).reshape(-1, *matrix)


@op
@kernels_round
def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Pullback]:
    """X W + b over the last axis; leading axes are rows of one product.

    Shapes:
        x: (..., D); weight: (D, F); bias: (F,) or None; result: (..., F).

    Raises:
        ShapeError: the shapes do not fit together.
    """
    x_ND, left, right = _operands("linear", x, weight, bias)
    y = same_precision(linear_in_precision(left, right, bias), x, weight)
    return y.reshape(*x.shape[:-1], y.shape[-1]), _pullback_of_linear(
        x, len(x_ND), left, right, weight, bias
    )


@op
@kernels_round
@quiet
def linear_gelu(
    x: Array, weight: Array, bias: Array | None = None, *, approximate: str = "none"
) -> tuple[Array, Pullback]:
    """GELU of x W + b, computed while that is at hand: as `linear` and then `gelu`, or `gelu_tanh`.

    Shapes:
        x: (..., D); weight: (D, F); bias: (F,) or None; result: (..., F).

    Args:
        x: rows.
        weight: matrix.
        bias: added to each row.
        approximate: "none" for the exact GELU, "tanh" for that by tanh.

    Raises:
        ShapeError: the shapes do not fit together.
    """
    exact = _is_exact("linear_gelu", approximate)
    u, y, through = _bent("linear_gelu", x, weight, bias, exact)

    def pullback(g: Array) -> Any:
        return through(_gelu_pullback(exact)(g.reshape(u.shape), u))

    return y.reshape(*x.shape[:-1], y.shape[-1]), pullback


@op
@kernels_round
@quiet
def feed_forward(
    x: Array,
    weight_in: Array,
    bias_in: Array | None,
    weight_out: Array,
    bias_out: Array | None,
    *,
    approximate: str = "none",
) -> tuple[Array, Pullback]:
    """`linear_gelu`, and `linear` of that: what stands between attentions, if nothing is dropped in the middle.

    The gradient behind the GELU is never stored on its own: it is multiplied by the slope as it is computed.

    Shapes:
        x: (..., D); weight_in: (D, F); bias_in: (F,) or None; weight_out: (F, E); bias_out: (E,) or None;
        result: (..., E).

    Raises:
        ShapeError: the shapes do not fit together.
    """
    exact = _is_exact("feed_forward", approximate)
    u, y_NF, through = _bent("feed_forward", x, weight_in, bias_in, exact)
    y_NF, left, right = _operands("feed_forward", y_NF, weight_out, bias_out)
    plain = left is y_NF and right is weight_out
    z = same_precision(linear_in_precision(left, right, bias_out), x, weight_in, weight_out)
    shape = z.shape
    behind = _pullback_of_linear(y_NF, len(y_NF), left, right, weight_out, bias_out)

    def pullback(g: Array) -> tuple[Any, ...]:
        g_NE = g.reshape(shape)
        g_y, *of_out = behind(g_NE)
        if not plain:
            return (*through(_gelu_pullback(exact)(g_y(), u)), *of_out)
        return (*through(product_gelu_pullback(g_NE, weight_out.T, u, exact)), *of_out)

    return z.reshape(*x.shape[:-1], z.shape[-1]), pullback


def _is_exact(op: str, approximate: str) -> bool:
    if approximate not in ("none", "tanh"):
        raise ConfigError(f"{op}: approximate is {approximate!r}; expected 'none' or 'tanh'.")
    return approximate == "none"


def _gelu_pullback(exact: bool) -> Any:
    return gelu_pullback if exact else gelu_tanh_pullback


def _bent(
    op: str, x: Array, weight: Array, bias: Array | None, exact: bool
) -> tuple[Array, Array, Pullback]:
    """U = x W + b as rows, GELU of it, and the pullback from u."""
    x_ND, left, right = _operands(op, x, weight, bias)
    u, y = linear_gelu_in_precision(left, right, bias, exact)
    same_precision(y, x, weight)
    return u, y, _pullback_of_linear(x, len(x_ND), left, right, weight, bias)


def _operands(op: str, x: Array, weight: Array, bias: Array | None) -> tuple[Array, Any, Any]:
    """X as rows; and both operands as the precision in use wants them."""
    if weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ShapeError(
            f"{op}: x has {x.shape[-1]} values on its last axis, but weight {weight.shape} takes {weight.shape[0]}."
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ShapeError(f"{op}: bias has shape {bias.shape}, expected {weight.shape[1:]}.")
    x_ND = x.reshape(-1, x.shape[-1])
    return x_ND, prepare(x_ND), prepare(weight, weight=True)


def _pullback_of_linear(
    x: Array, rows: int, left: Any, right: Any, weight: Array, bias: Array | None
) -> Pullback:
    shape, like_x, like_weight = x.shape, like(x), like(weight)
    like_bias = None if bias is None else like(bias)

    def room() -> Array | None:
        """Where the gradient of a weight in half precision goes: a sum over rows, it is float32."""
        return cuda.empty(weight, weight.shape, np.float32) if is_half(weight.dtype) else None

    def pullback(g: Array) -> tuple[Pullback, Pullback, Pullback]:
        g_NF = g.reshape(rows, weight.shape[1])
        given = prepare(g_NF)
        return (
            lambda: unbroadcast(product_in_precision(given, right.T).reshape(shape), like_x),
            lambda: unbroadcast(product_in_precision(left.T, given, room()), like_weight),
            lambda: unbroadcast(sum_rows(g_NF), like_bias),
        )

    return pullback


def einsum(equation: str, *operands: Tensor | Array) -> Tensor:
    """Sum of products in Einstein's notation, such as "bthk,bshk->bhts".

    Letters, "..." and repeated letters (diagonals) as in NumPy. Without "->" the result has, in alphabetical order, the
    letters that occur once.

    Raises:
        ShapeError: the equation does not fit the operands.
    """
    return _einsum(*operands, equation=equation)


@op
@at_least_float32
def _einsum(*operands: Array, equation: str) -> tuple[Array, Pullback]:
    """Sum of products in Einstein's notation."""
    xp = namespace(operands[0]) if operands else np
    terms, result = _letters(equation, operands)
    likes = [like(x) for x in operands]
    operands_like = [(x.shape, x.dtype) for x in operands]
    sources, views = [], []
    for term, x in zip(terms, operands, strict=True):  # repeated letters become a diagonal first
        once = "".join(dict.fromkeys(term))
        sources.append(once)
        views.append(x if once == term else xp.einsum(f"{term}->{once}", x))
    y = xp.einsum(f"{','.join(sources)}->{result}", *views, optimize=len(views) > 2)

    def by(i: int, g: Array) -> Any:
        others = [(s, v) for j, (s, v) in enumerate(zip(sources, views, strict=True)) if j != i]
        known = set(result).union(*(s for s, _ in others))
        target = "".join(c for c in sources[i] if c in known)
        left = ",".join([result, *(s for s, _ in others)])
        gx = xp.einsum(f"{left}->{target}", g, *(v for _, v in others), optimize=len(others) > 1)
        sizes = [views[i].shape[sources[i].index(c)] for c in sources[i]]
        spread = tuple(slice(None) if c in known else None for c in sources[i])
        gx = gx[spread]
        wide = [gx.shape[k] if n == 1 else n for k, n in enumerate(sizes)]
        gx = xp.broadcast_to(gx, wide)
        gx = unbroadcast(gx, (views[i].shape, gx.dtype))
        if sources[i] != terms[i]:
            shape, dtype = operands_like[i]
            full = xp.zeros(shape, dtype)
            xp.einsum(f"{terms[i]}->{sources[i]}", full)[...] = gx
            return full
        return unbroadcast(gx, likes[i])

    def pullback(g: Array) -> tuple[Any, ...]:
        return tuple(None if to is None else (lambda i=i: by(i, g)) for i, to in enumerate(likes))

    return same_precision(xp.asarray(y), *operands), pullback


def _letters(equation: str, operands: tuple[Array, ...]) -> tuple[list[str], str]:
    """The terms and the result with every "..." spelled out in capital letters that are not in use."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ShapeError(f"einsum: {equation!r} names {len(terms)} operands, got {len(operands)}.")
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    spans = [x.ndim - len(t.replace("...", "")) for t, x in zip(terms, operands, strict=True)]
    for term, x, span in zip(terms, operands, spans, strict=True):
        if span < 0 or (span and "..." not in term):
            raise ShapeError(
                f"einsum: {term!r} of {equation!r} does not fit an operand of shape {x.shape}."
            )
    most = int(np.max([s for s, t in zip(spans, terms, strict=True) if "..." in t], initial=0))
    terms = [
        t.replace("...", "".join(free[most - s : most])) for t, s in zip(terms, spans, strict=True)
    ]
    if not arrow:
        counts = Counter("".join(terms))
        once = sorted(c for c, n in counts.items() if n == 1 and c not in free[:most])
        return terms, "".join(free[:most]) + "".join(once)
    return terms, result.replace("...", "".join(free[:most]))
