"""The product of two matrices."""

from typing import Any

import numpy as np

from ..types import Array
from .registry import Kernel
from .threads import is_blas_ours, one_blas_thread, share

LEAST = 1 << 23
"""Multiplications worth a thread's while: about 120 microseconds of one core."""


@Kernel
def product(a_NK: Array, b_KM: Array) -> Array:
    """A b."""
    return a_NK @ b_KM


def _is_float(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.dtype.char in "fd" and is_blas_ours()


@product.variant("threads", library="numpy", when=_is_float)
def _threads() -> Any:
    """Rows or columns of the result are shared between threads, and BLAS uses one in each."""

    def shared(a_NK: Array, b_KM: Array) -> Array:
        (N, K), M = a_NK.shape, b_KM.shape[1]
        if N * K * M < 2 * LEAST:
            with one_blas_thread():
                return a_NK @ b_KM
        y_NM = np.empty((N, M), a_NK.dtype)

        def rows(start: int, stop: int) -> None:
            np.matmul(a_NK[start:stop], b_KM, out=y_NM[start:stop])

        def columns(start: int, stop: int) -> None:
            np.matmul(a_NK, b_KM[:, start:stop], out=y_NM[:, start:stop])

        if N >= M:
            share(N, rows, least=-(-LEAST // (K * M)))
        else:
            share(M, columns, least=-(-LEAST // (K * N)))
        return y_NM

    return shared
