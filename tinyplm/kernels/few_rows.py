"""A linear map of a few rows, as when text is written token by token: the time is that of reading the weights.

    y = gelu(normalised(x) W scale + b) + residual

Whatever surrounds the product is done by the thread that has its rows or columns, so that a block of a Transformer is
four such calls and one of `attend_few`. Weights are float32 or float64 as x is; or, for float32 x, int8 with a scale
for each column, or bfloat16 as uint16. Those are widened in registers, and sums are float32.

Layout: x (N, D), W (D, F). W lies in memory by rows, as that of a linear layer, or by columns, as the transpose of an
embedding and everything quantised.
"""

import functools
import math
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from .compiled import address, array_at, exponential, gemm, parallel, plus
from .gelu import HELPERS as GELU
from .gelu import gelu_tanh, gelu_tanh_forward
from .registry import Kernel
from .threads import available, has_products

FEW = 8
"""Rows up to which reading weights takes longer than computing with them."""

LEAST_WEIGHTS = 1 << 15
"""Weights worth a thread's while: about 3 microseconds of one core."""

AHEAD = 4096
"""Bytes from the weights at work to those asked of memory: without asking, memory waits for arithmetic in turns."""

BLOCK = 1 << 18
"""Weights widened at once for BLAS: 1 MB of float32."""


_NONE = {kind: (np.empty(0, kind), np.empty((0, 0), kind)) for kind in "fd"}


@Kernel
def few_rows(
    x_ND: Array,
    gain_D: Array | None,
    shift_D: Array | None,
    eps: float,
    weight_DF: Array,
    scale_F: Array | None,
    bias_F: Array | None,
    gelu: bool,
    residual_NF: Array | None,
) -> Array:
    """The formula above; without a gain nothing is normalised."""
    if gain_D is not None:
        x_ND = x_ND - x_ND.mean(axis=1, keepdims=True)
        square_N1 = (x_ND * x_ND).mean(axis=1, keepdims=True)
        x_ND /= namespace(x_ND).sqrt(square_N1 + eps)
        x_ND = x_ND * gain_D + shift_D
    y_NF = x_ND @ widened_array(weight_DF, x_ND.dtype)
    if scale_F is not None:
        y_NF *= scale_F
    if bias_F is not None:
        y_NF += bias_F
    if gelu:
        y_NF = gelu_tanh_forward.definition(y_NF)
    if residual_NF is not None:
        y_NF += residual_NF
    return y_NF


@Kernel
def attend_few(
    qkv_NE: Array,
    keys: Array,
    values: Array,
    start: int,
    real_BS: Array | None,
    scale: float,
    y_ND: Array,
) -> None:
    """Softmax attention of T new positions to themselves and those before, which a cache holds.

    Keys and values (B, H, capacity, K) are filled up to `start`, and get those of the new positions. A position sees
    none after it, and none where `real` is false; one that sees nothing gives 0.

    Shapes:
        qkv: (B T, 3 H K), queries, keys and values of each position; y: (B T, H K), is overwritten.
    """
    xp = namespace(qkv_NE)
    B, H, _, K = keys.shape
    T = len(qkv_NE) // B
    q, k, v = qkv_NE.reshape(B, T, 3, H, K).transpose(2, 0, 3, 1, 4)
    end = start + T
    keys[:, :, start:end], values[:, :, start:end] = k, v
    s = q @ keys[:, :, :end].swapaxes(-1, -2) * q.dtype.type(scale)
    seen = xp.arange(end) <= xp.arange(start, end)[:, None]
    if real_BS is not None:
        seen = seen & real_BS[:, None, None, :end]
    s = xp.where(seen, s, -xp.inf)
    top = s.max(axis=-1, keepdims=True)
    p = xp.exp(s - xp.where(top == -xp.inf, s.dtype.type(0), top))
    total = p.sum(axis=-1, keepdims=True)
    y = (p @ values[:, :, :end]) / xp.where(total == 0, s.dtype.type(1), total)
    y_ND[...] = y.swapaxes(1, 2).reshape(y_ND.shape)


def widened_array(weight: Array, dtype: np.dtype[Any]) -> Array:
    """Weights as floats of this type: bfloat16 where they are uint16, else their own values."""
    if weight.dtype == np.uint16:
        return (weight.astype(np.uint32) << 16).view(np.float32).astype(dtype, copy=False)
    return weight.astype(dtype, copy=False)


def widened(weight: Any) -> Any:
    """In compiled code only: one weight as a float."""
    raise NotImplementedError


def fetch(array: Array, index: Any) -> None:
    """In compiled code only: ask memory for what lies at this index, which need not be within the array."""
    raise NotImplementedError


@functools.cache
def _known_to_compiler() -> bool:
    """Tell Numba what `widened` and `fetch` are; whether there is a Numba."""
    try:
        from llvmlite import ir
        from numba import types
        from numba.core import cgutils
        from numba.extending import intrinsic, overload
    except ImportError:
        return False

    @overload(widened, strict=False)
    def _widened(weight: Any) -> Any:
        if weight == types.uint16:
            return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
        if weight == types.int8:
            return lambda weight: np.float32(weight)
        return lambda weight: weight

    @intrinsic
    def _fetch(typing: Any, array: Any, index: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
            place = builder.bitcast(builder.gep(data, [values[1]]), byte)
            kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(function, [place, number(0), number(3), number(1)])  # to read, into L1
            return context.get_dummy_value()

        return types.void(array, types.int64), code

    @overload(fetch, strict=False)
    def _fetched(array: Any, index: Any) -> Any:
        return lambda array, index: _fetch(array, index)

    return True


# In the bodies an array of no values stands for none: fewer combinations of types to compile.


def _normalised(x: Array, gain: Array, shift: Array, eps: Any) -> Array:
    if gain.size == 0:
        return x
    N, D = x.shape
    kind = x.dtype.type
    y = np.empty((N, D), x.dtype)
    for n in range(N):
        row, out = x[n], y[n]
        total, square = kind(0), kind(0)
        for i in range(D):
            total = plus(total, row[i])
        mean = total / kind(D)
        for i in range(D):
            d = row[i] - mean
            square = plus(square, d * d)
        one_over = kind(1) / kind(math.sqrt(square / kind(D) + kind(eps)))
        for i in range(D):
            out[i] = (row[i] - mean) * one_over * gain[i] + shift[i]
    return y


def _finish(
    y: Array, start: int, stop: int, scale: Array, bias: Array, gelu: bool, residual: Array,
) -> None:  # fmt: skip
    for n in range(y.shape[0]):
        out = y[n, start:stop]  # from 0: LLVM knows then that no index is negative
        if scale.size:
            own = scale[start:stop]
            for j in range(out.size):
                out[j] *= own[j]
        if bias.size:
            own = bias[start:stop]
            for j in range(out.size):
                out[j] += own[j]
        if gelu:
            for j in range(out.size):
                out[j] = gelu_tanh(out[j])
        if residual.size:
            row = residual[n, start:stop]
            for j in range(out.size):
                out[j] += row[j]


def _by_rows(
    team: Any, part: int, start: int, stop: int,
    x: Any, gain: Any, shift: Any, eps: Any,
    weight: Any, scale: Any, bias: Any, gelu: Any, residual: Any, y: Any,
) -> None:  # fmt: skip
    # Eight rows of weights at a time are added to the results, which stay in cache. The processor follows eight streams
    # by itself; asking for them ahead was slower.
    # Rows are taken by address: a slice would count its users, and the threads would wait for each other to count.
    N, D = x.shape
    h = _normalised(x, gain, shift, eps)
    width, step, out_step = stop - start, weight.strides[0], y.strides[0]
    at, out_at = address(weight) + start * x.itemsize, address(y) + start * x.itemsize
    for n in range(N):
        y[n, start:stop] = 0
    i = 0
    while i + 8 <= D:
        first = at + i * step
        a, b = array_at(first, width, y), array_at(first + step, width, y)
        c, d = array_at(first + 2 * step, width, y), array_at(first + 3 * step, width, y)
        e, f = array_at(first + 4 * step, width, y), array_at(first + 5 * step, width, y)
        g, o = array_at(first + 6 * step, width, y), array_at(first + 7 * step, width, y)
        for n in range(N):
            v, out = h[n], array_at(out_at + n * out_step, width, y)
            p, q, r, s = v[i], v[i + 1], v[i + 2], v[i + 3]
            t, u, w, z = v[i + 4], v[i + 5], v[i + 6], v[i + 7]
            for j in range(width):
                out[j] += (
                    ((p * a[j] + q * b[j]) + (r * c[j] + s * d[j]))
                    + ((t * e[j] + u * f[j]) + (w * g[j] + z * o[j]))
                )  # fmt: skip
        i += 8
    while i < D:
        a = array_at(at + i * step, width, y)
        for n in range(N):
            p, out = h[n, i], array_at(out_at + n * out_step, width, y)
            for j in range(width):
                out[j] += p * a[j]
        i += 1
    _finish(y, start, stop, scale, bias, gelu, residual)


def _by_columns(
    team: Any, part: int, start: int, stop: int,
    x: Any, gain: Any, shift: Any, eps: Any,
    weight: Any, scale: Any, bias: Any, gelu: Any, residual: Any, y: Any,
) -> None:  # fmt: skip
    # weight is turned, (F, D): each result is an inner product with one row of it.
    N, D = x.shape
    kind = x.dtype.type
    h = _normalised(x, gain, shift, eps)
    line, ahead = 64 // weight.itemsize, AHEAD // weight.itemsize
    first, out = h[0], y[0]
    wide = np.empty(D, x.dtype)
    for j in range(start, stop):
        row = array_at(address(weight) + j * weight.strides[0], D, weight)  # see _by_rows
        for i in range(ahead, ahead + D, line):
            fetch(row, i)
        if N == 1:
            total = kind(0)
            for i in range(D):
                total = plus(total, first[i] * widened(row[i]))
            out[j] = total
        else:
            for i in range(D):
                wide[i] = widened(row[i])
            for n in range(N):
                v = h[n]
                total = kind(0)
                for i in range(D):
                    total = plus(total, v[i] * wide[i])
                y[n, j] = total
    _finish(y, start, stop, scale, bias, gelu, residual)


def _by_blocks(
    team: Any, part: int, start: int, stop: int,
    x: Any, gain: Any, shift: Any, eps: Any,
    weight: Any, scale: Any, bias: Any, gelu: Any, residual: Any, y: Any,
) -> None:  # fmt: skip
    # As _by_columns, for many rows: a block of weights is widened and multiplied by BLAS.
    D = x.shape[1]
    h = _normalised(x, gain, shift, eps)
    size = max(16, BLOCK // max(1, D))
    wide = np.empty((min(size, stop - start), D), x.dtype)
    for left in range(start, stop, size):
        right = min(left + size, stop)
        for j in range(left, right):
            row, out = weight[j], wide[j - left]
            for i in range(D):
                out[i] = widened(row[i])
        gemm(
            team, x, False, True, x.shape[0], right - left, D, 1, address(h), D, address(wide), D,
            0, address(y) + left * y.itemsize, y.shape[1],
        )  # fmt: skip
    _finish(y, start, stop, scale, bias, gelu, residual)


def applies(
    x_ND: Array,
    gain_D: Array | None,
    shift_D: Array | None,
    eps: float,
    weight_DF: Array,
    scale_F: Array | None,
    bias_F: Array | None,
    gelu: bool,
    residual_NF: Array | None,
) -> bool:
    """Whether the compiled loops can do this."""
    kind = x_ND.dtype.char
    packed = weight_DF.dtype.char in "bH" and kind == "f"
    return (
        kind in "fd"
        and x_ND.flags.c_contiguous
        and (packed or weight_DF.dtype.char == kind)
        and (weight_DF.flags.f_contiguous or (weight_DF.flags.c_contiguous and not packed))
        and (len(x_ND) <= FEW or (packed and has_products()))
        and all(
            a is None or (a.dtype.char == kind and a.flags.c_contiguous)
            for a in (gain_D, shift_D, scale_F, bias_F, residual_NF)
        )
    )


def _to_read(array: Array | None, none: Array | None = None) -> Array:
    """The array as one that cannot be written, or in its place none.

    Arrays of parameters are such, and those that are made on the way are not; compiled code would be made for each
    combination, and Numba refuses to choose between two that are equally near.
    """
    found: Any = none if array is None else array
    if found.flags.writeable:
        found = found.view()
        found.flags.writeable = False
    return found


@few_rows.variant("numba", library="numpy", when=applies)
def _few_rows() -> Any:
    """Each thread reads its own part of the weights, once."""
    if not _known_to_compiler():
        return None
    helpers = (_normalised, _finish, *GELU)
    by_rows = parallel(_by_rows, *helpers)
    by_columns, by_blocks = parallel(_by_columns, *helpers), parallel(_by_blocks, *helpers)
    if by_rows is None or by_columns is None or by_blocks is None:
        return None

    def run(
        x: Array,
        gain: Array | None,
        shift: Array | None,
        eps: float,
        weight: Array,
        scale: Array | None,
        bias: Array | None,
        gelu: bool,
        residual: Array | None,
    ) -> Array:
        (N, D), F = x.shape, weight.shape[1]
        y = np.empty((N, F), x.dtype)
        if N == 0 or F == 0:
            return y
        turned = weight.flags.f_contiguous
        loop = by_rows if not turned else by_columns if N <= FEW or D == 0 else by_blocks
        none, no_rows = _NONE[x.dtype.char]
        loop(
            F, _to_read(x), _to_read(gain, none), _to_read(shift, none), float(eps),
            _to_read(weight.T if turned else weight),
            _to_read(scale, none), _to_read(bias, none), bool(gelu), _to_read(residual, no_rows), y,
            least=max(16, LEAST_WEIGHTS // max(1, D)),
            most=4 * available() if turned else available(),
        )  # fmt: skip
        return y

    return run


def _attend_part(
    team: Any, part: int, start: int, stop: int,
    qkv: Any, keys: Any, values: Any, filled: Any, real: Any, scale: Any, y: Any,
) -> None:  # fmt: skip
    B, H, _, K = keys.shape
    T = qkv.shape[0] // B
    D = H * K
    kind = qkv.dtype.type
    scores = np.empty(filled + T, qkv.dtype)
    for item in range(start, stop):
        b, head = item // H, item % H
        key, value, at = keys[b, head], values[b, head], head * K
        for t in range(T):
            given = qkv[b * T + t]
            new_key, new_value = key[filled + t], value[filled + t]
            for i in range(K):
                new_key[i] = given[D + at + i]
                new_value[i] = given[2 * D + at + i]
        for t in range(T):
            q, out = qkv[b * T + t, at : at + K], y[b * T + t, at : at + K]
            seen = filled + t + 1
            top, broken = kind(-np.inf), False
            for s in range(seen):
                row = key[s]
                score = kind(0)
                for i in range(K):
                    score = plus(score, q[i] * row[i])
                score *= kind(scale)
                if real is not None and not real[b, s]:
                    score = kind(-np.inf)
                scores[s] = score
                broken |= score != score
                top = score if score > top else top
            out[:] = 0
            if top == kind(-np.inf) and not broken:
                continue
            total = kind(0)
            for s in range(seen):
                e = exponential(scores[s] - top)
                scores[s] = e
                total = plus(total, e)
            s = 0
            while s + 4 <= seen:
                c, d, e, f = scores[s], scores[s + 1], scores[s + 2], scores[s + 3]
                one, two, three, four = value[s], value[s + 1], value[s + 2], value[s + 3]
                for i in range(K):
                    out[i] += (c * one[i] + d * two[i]) + (e * three[i] + f * four[i])
                s += 4
            while s < seen:
                c, one = scores[s], value[s]
                for i in range(K):
                    out[i] += c * one[i]
                s += 1
            for i in range(K):
                out[i] /= total


def _attends(
    qkv_NE: Array,
    keys: Array,
    values: Array,
    start: int,
    real_BS: Array | None,
    scale: float,
    y_ND: Array,
) -> bool:
    kind = qkv_NE.dtype.char
    return (
        kind in "fd"
        and all(a.dtype.char == kind and a.flags.c_contiguous for a in (qkv_NE, keys, values, y_ND))
        and (real_BS is None or real_BS.flags.c_contiguous)
    )


@attend_few.variant("numba", library="numpy", when=_attends)
def _attend_few() -> Any:
    """Batch rows and heads are shared between threads; the past is read where it lies."""
    run = parallel(_attend_part)
    if run is None:
        return None

    def attend(
        qkv: Array,
        keys: Array,
        values: Array,
        start: int,
        real: Array | None,
        scale: float,
        y: Array,
    ) -> None:
        B, H, _, K = keys.shape
        work = max(1, (start + 1) * K * (len(qkv) // max(1, B)))
        run(
            B * H, _to_read(qkv), keys, values, start, None if real is None else _to_read(real),
            float(scale), y, least=max(1, LEAST_WEIGHTS // work),
        )  # fmt: skip

    return attend
