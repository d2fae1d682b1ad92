"""The product of two matrices; a linear map with its bias, and with a GELU or an addition behind it; sums over rows."""

import functools
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda, matmul_cuda, matmul_hopper, mkl  # noqa: F401 (offers plans)
from .compiled import address, gemm, parallel
from .gelu import HELPERS as GELU
from .gelu import (
    gelu,
    gelu_forward,
    gelu_pullback,
    gelu_tanh,
    gelu_tanh_forward,
    gelu_tanh_pullback,
)
from .precision import Prepared, multiply
from .registry import Kernel
from .threads import LEAST, available, has_products, products_by

LEAST_PRODUCT = 1 << 19
"""Multiplications worth a thread's while: about 7 microseconds of one core."""

PAGE, DEPTH, FEW = 4096, 128, (24, 176)
"""Bytes, terms of a sum and rows: see `_depth`."""

BLOCKS = 528
"""Blocks among which a sum over rows is shared on a card, about: four for each multiprocessor of an H100, and the same
number on every card, so that sums have one order."""

LEAST_ROWS = 64
"""Rows of a block, at least."""

_NO_BIAS = {"f": np.empty(0, np.float32), "d": np.empty(0, np.float64)}


@Kernel
def product(a_NK: Array, b_KM: Array, out: Array | None = None, keep: float = 0.0) -> Array:
    """A b; or out = a b + keep out, for a matrix in row-major order that is overwritten and returned."""
    if out is None or keep == 0:
        return namespace(a_NK).matmul(a_NK, b_KM, out=out)
    if keep != 1:
        out *= out.dtype.type(keep)
    out += a_NK @ b_KM
    return out


@Kernel
def linear_forward(x_ND: Array, weight_DF: Array, bias_F: Array | None) -> Array:
    """X W + b."""
    y_NF = x_ND @ weight_DF
    if bias_F is not None:
        y_NF += bias_F
    return y_NF


@Kernel
def linear_gelu_forward(
    x_ND: Array, weight_DF: Array, bias_F: Array | None, exact: bool
) -> tuple[Array, Array]:
    """U = x W + b, and GELU of it; exact, or by tanh."""
    u_NF = linear_forward(x_ND, weight_DF, bias_F)
    return u_NF, (gelu_forward if exact else gelu_tanh_forward)(u_NF)


@Kernel
def linear_residual_forward(
    x_ND: Array, weight_DF: Array, bias_F: Array | None, residual_NF: Array
) -> Array:
    """X W + b + residual."""
    y_NF = linear_forward(x_ND, weight_DF, bias_F)
    y_NF += residual_NF
    return y_NF


@Kernel
def product_gelu_pullback(g_NF: Array, weight_FD: Array, u_ND: Array, exact: bool) -> Array:
    """G W, times the slope of GELU at u: the gradient of what a GELU before a linear map was computed of."""
    return (gelu_pullback if exact else gelu_tanh_pullback)(product(g_NF, weight_FD), u_ND)


@Kernel
def sum_rows(g_NF: Array) -> Array:
    """The sum of all rows."""
    return g_NF.sum(axis=0)


def _is_float(a: Array, b: Array, *rest: Any) -> bool:
    """Whether BLAS takes these; it wants sizes of at least one."""
    kind = a.dtype.char
    third = rest[0] if rest else None
    return (
        kind in "fd"
        and b.dtype.char == kind
        and (third is None or third.dtype.char == kind)
        and a.size > 0
        and b.size > 0
        and has_products()
    )


def _product_part(
    team: Any, part: int, start: int, stop: int,
    a: Any, turn_a: Any, b: Any, turn_b: Any, bias: Any, y: Any, keep: Any, by_rows: Any, depth: Any,
) -> None:  # fmt: skip
    _rectangle(team, start, stop, a, turn_a, b, turn_b, bias, y, keep, by_rows, depth, None, False)


def _gelu_part(
    team: Any, part: int, start: int, stop: int,
    a: Any, turn_a: Any, b: Any, turn_b: Any, bias: Any, y: Any, keep: Any, by_rows: Any, depth: Any,
    bent: Any, exact: Any,
) -> None:  # fmt: skip
    _rectangle(team, start, stop, a, turn_a, b, turn_b, bias, y, keep, by_rows, depth, bent, exact)


def _rectangle(
    team: Any, start: int, stop: int,
    a: Any, turn_a: Any, b: Any, turn_b: Any, bias: Any, y: Any, keep: Any, by_rows: Any, depth: Any,
    bent: Any, exact: Any,
) -> None:  # fmt: skip
    """Some rows or columns of y = a b + bias + keep y, and of their GELU if there is an array for it."""
    N, M = y.shape
    K = a.shape[0] if turn_a else a.shape[1]
    lda, ldb, size = a.shape[1], b.shape[1], a.itemsize
    step_a, deep_a = (1, lda) if turn_a else (lda, 1)  # to the next row, and to the next column
    step_b, deep_b = (ldb, 1) if turn_b else (1, ldb)  # to the next column, and to the next row
    first, last, left, right = start, stop, 0, M
    if not by_rows:
        first, last, left, right = 0, N, start, stop
    for k in range(0, K, depth):
        gemm(
            team, a, turn_a, turn_b, last - first, right - left, min(depth, K - k), 1,
            address(a) + size * (first * step_a + k * deep_a), lda,
            address(b) + size * (left * step_b + k * deep_b), ldb,
            keep if k == 0 else y.dtype.type(1), address(y) + y.itemsize * (first * M + left), M,
        )  # fmt: skip
    # Not block by block: BLAS would bring b into its own order for each of them.
    own = (
        bias[left:right] if bias.size else bias
    )  # from 0: LLVM knows then that no index is negative
    for r in range(first, last):
        row = y[r, left:right]
        for c in range(own.size):
            row[c] += own[c]
        if bent is not None:
            result = bent[r, left:right]
            if exact:
                for c in range(row.size):
                    result[c] = gelu(row[c])
            else:
                for c in range(row.size):
                    result[c] = gelu_tanh(row[c])


def _sum_part(team: Any, part: int, start: int, stop: int, g: Any, out: Any) -> None:
    own = out[start:stop]
    for c in range(own.size):
        own[c] = 0
    whole = len(g) - len(g) % 4
    for r in range(0, whole, 4):
        w, x, y, z = (
            g[r, start:stop],
            g[r + 1, start:stop],
            g[r + 2, start:stop],
            g[r + 3, start:stop],
        )
        for c in range(own.size):
            own[c] += (w[c] + x[c]) + (y[c] + z[c])
    for r in range(whole, len(g)):
        row = g[r, start:stop]
        for c in range(own.size):
            own[c] += row[c]


def _turned(a: Array) -> tuple[Array, bool]:
    """A matrix in row-major order, and whether it must be turned to be the one given."""
    if a.flags.c_contiguous:
        return a, False
    if a.flags.f_contiguous:
        return a.T, True
    return np.ascontiguousarray(a), False


def _depth(rows: int, K: int, b: Array, turn_b: bool) -> int:
    """How much of the axis between two matrices a product takes at once.

    MKL reads a right matrix as it lies if the left one has few rows. Where its rows are whole pages apart, they share a
    few lines of a core's cache, and taking less of them at a time makes products faster by a third to a half.
    """
    apart = b.strides[0] % PAGE == 0 and not turn_b and b.dtype.kind == "f"
    return DEPTH if apart and FEW[0] <= rows < FEW[1] and products_by() == "MKL" else K


@functools.cache
def _runner(body: Any = _product_part) -> Any:
    """Rows or columns of the result are shared between threads, and BLAS uses one in each."""
    run = parallel(body, _rectangle, *GELU)
    if run is None:
        return None

    def shared(
        a_NK: Array, b_KM: Array, bias_M: Array | None, y_NM: Array, keep: float, *more: Any
    ) -> None:
        (N, K), M = a_NK.shape, b_KM.shape[1]
        by_rows = N >= M
        b, turn_b = _turned(b_KM)
        run(
            N if by_rows else M,
            *_turned(a_NK),
            b,
            turn_b,
            _NO_BIAS[y_NM.dtype.char] if bias_M is None else np.ascontiguousarray(bias_M),
            y_NM,
            y_NM.dtype.type(keep),
            by_rows,
            _depth(-(-N // available()) if by_rows else N, K, b, turn_b),
            *more,
            least=-(-LEAST_PRODUCT // (K * (M if by_rows else N))),
            most=available(),
        )

    return shared


def _product_of_halves(
    a_NK: Array, b_KM: Array, y_NM: Array, keep: float, bias_M: Array | None = None
) -> None:
    """Y = a b + bias + keep y for bfloat16 as uint16, shared between threads, each in MKL."""
    shared = _runner()
    if shared is not None and y_NM.flags.c_contiguous:
        shared(a_NK, b_KM, bias_M, y_NM, keep)
        return
    mkl.gemm(a_NK, b_KM, y_NM, beta=keep)
    if bias_M is not None:
        y_NM += bias_M


def product_in_precision(
    a: Array | Prepared, b: Array | Prepared, out: Array | None = None, keep: float = 0.0
) -> Array:
    """As `product`, in the precision that holds."""
    return multiply(a, b, product, out, keep, bits=_product_of_halves)


def linear_in_precision(x: Array | Prepared, weight: Array | Prepared, bias: Array | None) -> Array:
    """As `linear_forward`, in the precision that holds."""
    return multiply(
        x,
        weight,
        lambda x, weight: linear_forward(x, weight, bias),
        bits=_product_of_halves,
        last=functools.partial(_product_of_halves, bias_M=bias),
    )


def linear_gelu_in_precision(
    x: Array | Prepared, weight: Array | Prepared, bias: Array | None, exact: bool
) -> tuple[Array, Array]:
    """As `linear_gelu_forward`, in the precision that holds."""
    bent: Array

    def plain(x: Array, weight: Array) -> Array:
        nonlocal bent
        u, bent = linear_gelu_forward(x, weight, bias, exact)
        return u

    def last(x: Array, weight: Array, u: Array, keep: float) -> None:
        nonlocal bent
        shared = _runner(_gelu_part)
        if shared is None:
            _product_of_halves(x, weight, u, keep, bias)
            bent = (gelu_forward if exact else gelu_tanh_forward)(u)
        else:
            bent = np.empty_like(u)
            shared(x, weight, bias, u, keep, bent, exact)

    return multiply(x, weight, plain, bits=_product_of_halves, last=last), bent


@product.variant("numba", library="numpy", when=_is_float)
def _product() -> Any:
    """Shared between threads."""
    shared = _runner()
    if shared is None:
        return None

    def multiplied(a: Array, b: Array, out: Array | None = None, keep: float = 0.0) -> Array:
        y = np.empty((a.shape[0], b.shape[1]), a.dtype) if out is None else out
        shared(a, b, None, y, keep)
        return y

    return multiplied


@linear_forward.variant("numba", library="numpy", when=_is_float)
def _linear() -> Any:
    """Shared between threads, each of which adds the bias to what it made."""
    shared = _runner()
    if shared is None:
        return None

    def forward(x: Array, weight: Array, bias: Array | None) -> Array:
        y = np.empty((x.shape[0], weight.shape[1]), x.dtype)
        shared(x, weight, bias, y, 0.0)
        return y

    return forward


@linear_gelu_forward.variant("numba", library="numpy", when=_is_float)
def _linear_gelu() -> Any:
    """As linear_forward, and GELU in the same pass as the bias."""
    shared = _runner(_gelu_part)
    if shared is None:
        return None

    def forward(x: Array, weight: Array, bias: Array | None, exact: bool) -> tuple[Array, Array]:
        u, y = (np.empty((x.shape[0], weight.shape[1]), x.dtype) for _ in range(2))
        shared(x, weight, bias, u, 0.0, y, exact)
        return u, y

    return forward


@sum_rows.variant(
    "numba", library="numpy", when=lambda g: g.dtype.char in "fd" and g.flags.c_contiguous
)
def _sum() -> Any:
    """Columns are shared between threads."""
    run = parallel(_sum_part)
    if run is None:
        return None

    def summed(g_NF: Array) -> Array:
        out_F = np.empty(g_NF.shape[1], g_NF.dtype)
        run(g_NF.shape[1], g_NF, out_F, least=max(64, LEAST // max(1, len(g_NF))))
        return out_F

    return summed


def _product_there(a: Array, b: Array, out: Array | None = None, keep: float = 0.0) -> bool:
    return matmul_cuda.takes(a, b) and (out is None or matmul_cuda.takes_result(out, a, b))


@product.variant("cuda", library="cupy", when=_product_there)
def _cuda_product() -> Any:
    """Tiles of tensor cores, or of float32; batches too, and results in float32 of halves."""
    return matmul_cuda.compute if cuda.usable() else None


def _rows_there(x: Array, weight: Array, *others: Array | None) -> bool:
    return x.ndim == weight.ndim == 2 and matmul_cuda.takes(x, weight, *others)


@linear_forward.variant("cuda", library="cupy", when=_rows_there)
def _cuda_linear() -> Any:
    """As product; the bias is added to sums before they are rounded."""

    def forward(x: Array, weight: Array, bias: Array | None) -> Array:
        return matmul_cuda.compute(x, weight, bias=bias)

    return forward if cuda.usable() else None


@linear_gelu_forward.variant(
    "cuda", library="cupy", when=lambda x, weight, bias, _: _rows_there(x, weight, bias)
)
def _cuda_linear_gelu() -> Any:
    """As linear_forward; GELU is of sums before they are rounded."""

    def forward(x: Array, weight: Array, bias: Array | None, exact: bool) -> tuple[Array, Array]:
        u = cuda.empty(x, (len(x), weight.shape[1]))
        last = "gelu" if exact else "gelu_tanh"
        return u, matmul_cuda.compute(x, weight, bias=bias, before=u, last=last)

    return forward if cuda.usable() else None


@linear_residual_forward.variant("cuda", library="cupy", when=_rows_there)
def _cuda_linear_residual() -> Any:
    """As linear_forward; the residual is added to sums before they are rounded."""

    def forward(x: Array, weight: Array, bias: Array | None, residual: Array) -> Array:
        return matmul_cuda.compute(x, weight, bias=bias, other=residual)

    return forward if cuda.usable() else None


@product_gelu_pullback.variant(
    "cuda", library="cupy", when=lambda g, weight, u, _: _rows_there(g, weight, u)
)
def _cuda_product_gelu_pullback() -> Any:
    """As product; sums are multiplied before they are rounded."""

    def pullback(g: Array, weight: Array, u: Array, exact: bool) -> Array:
        last = "slope" if exact else "slope_tanh"
        return matmul_cuda.compute(g, weight, other=u, last=last)

    return pullback if cuda.usable() else None


@sum_rows.variant("cuda", library="cupy", when=lambda g: g.ndim == 2 and g.size and cuda.known(g))
def _cuda_sum() -> Any:
    """Blocks add up some rows each, and then one adds up these; in float32, in which the sums stay."""

    def summed(g_NF: Array) -> Array:
        (g_NF,) = cuda.whole(g_NF)
        N, F = g_NF.shape
        group = _side_by_side(g_NF)
        parts = max(1, min(N // LEAST_ROWS, BLOCKS // -(-F // (32 * group))))
        rows = -(-N // parts)
        parts = -(-N // rows)
        out_F = cuda.empty(g_NF, (F,), np.float32)
        sums = out_F if parts == 1 else cuda.empty(g_NF, (parts, F), np.float32)
        _start_sum(g_NF, sums, rows)
        if parts > 1:
            _start_sum(sums, out_F, parts)
        return out_F

    return summed if cuda.usable() else None


def _side_by_side(g: Array) -> int:
    """Columns that a thread of sum_rows.cu has."""
    group = 16 // g.itemsize
    return group if g.shape[1] % group == 0 and cuda.are_aligned(group, g) else 1


def _start_sum(g: Array, out: Array, rows: int) -> None:
    """Add up so many rows for each row of out."""
    (N, F), group = g.shape, _side_by_side(g)
    kernel = f"sum_rows_{g.dtype.name}_{'single' if group == 1 else 'groups'}"
    blocks = -(-F // (32 * group)) * -(-N // rows)
    cuda.launch("sum_rows", kernel, blocks, cuda.THREADS, g, out, N, F, rows)
