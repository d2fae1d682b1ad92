"""Layer and root-mean-square normalisation of rows, with the pullbacks."""

import math
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from .compiled import is_single, jit
from .registry import Kernel
from .threads import LEAST, share


@Kernel
def layer_norm_forward(
    x_RC: Array, gain: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array]:
    """Result, normalised rows, and one over the standard deviation of each row."""
    width = x_RC.shape[1]
    n_RC = x_RC - x_RC.sum(axis=1, keepdims=True) / width
    scale_R1 = 1 / namespace(x_RC).sqrt(_row_dot(n_RC, n_RC) / width + eps)
    n_RC *= scale_R1
    y_RC = n_RC * gain
    y_RC += bias
    return y_RC, n_RC, scale_R1


@Kernel
def layer_norm_pullback(
    g_RC: Array, n_RC: Array, scale_R1: Array, gain: Array
) -> tuple[Array, Array, Array]:
    """Gradients of x, gain and bias."""
    width = g_RC.shape[1]
    g_gain = namespace(g_RC).einsum("rc,rc->c", g_RC, n_RC)
    g_bias = g_RC.sum(axis=0)
    h_RC = g_RC * gain
    along_R1 = _row_dot(h_RC, n_RC) / width
    h_RC -= h_RC.sum(axis=1, keepdims=True) / width
    h_RC -= n_RC * along_R1
    h_RC *= scale_R1
    return h_RC, g_gain, g_bias


@Kernel
def rms_norm_forward(x_RC: Array, gain: Array, eps: float) -> tuple[Array, Array, Array]:
    """Result, normalised rows, and one over the root mean square of each row."""
    scale_R1 = 1 / namespace(x_RC).sqrt(_row_dot(x_RC, x_RC) / x_RC.shape[1] + eps)
    n_RC = x_RC * scale_R1
    return n_RC * gain, n_RC, scale_R1


@Kernel
def rms_norm_pullback(
    g_RC: Array, n_RC: Array, scale_R1: Array, gain: Array
) -> tuple[Array, Array]:
    """Gradients of x and gain."""
    g_gain = namespace(g_RC).einsum("rc,rc->c", g_RC, n_RC)
    h_RC = g_RC * gain
    h_RC -= n_RC * (_row_dot(h_RC, n_RC) / g_RC.shape[1])
    h_RC *= scale_R1
    return h_RC, g_gain


def _row_dot(a_RC: Array, b_RC: Array) -> Array:
    """Inner product of each row of a with that of b, as a column."""
    xp = namespace(a_RC)
    if xp is np:
        return np.einsum("rc,rc->r", a_RC, b_RC)[:, None]
    return (a_RC * b_RC).sum(axis=1, keepdims=True)


def _forward_loop(
    x: Array, gain: Array, bias: Array, eps: Any, y: Array, n: Array, scale: Array
) -> None:
    R, C = x.shape
    width = np.float32(C)
    for r in range(R):
        total = np.float32(0)
        for c in range(C):
            total += x[r, c]
        mean = total / width
        square = np.float32(0)
        for c in range(C):
            d = x[r, c] - mean
            square += d * d
        s = np.float32(1) / np.float32(math.sqrt(square / width + eps))
        scale[r, 0] = s
        for c in range(C):
            v = (x[r, c] - mean) * s
            n[r, c] = v
            y[r, c] = v * gain[c] + bias[c]


def _pullback_loop(
    g: Array, n: Array, scale: Array, gain: Array, gx: Array, g_gain: Array, g_bias: Array
) -> None:
    R, C = g.shape
    width = np.float32(C)
    for r in range(R):
        total = np.float32(0)
        along = np.float32(0)
        for c in range(C):
            h = g[r, c] * gain[c]
            total += h
            along += h * n[r, c]
        mean, along, s = total / width, along / width, scale[r, 0]
        for c in range(C):
            gx[r, c] = (g[r, c] * gain[c] - mean - n[r, c] * along) * s
            g_gain[c] += g[r, c] * n[r, c]
            g_bias[c] += g[r, c]


@layer_norm_forward.variant("numba", library="numpy", when=lambda x, g, b, _: is_single(x, g, b))
def _numba_forward() -> Any:
    """Each row stays in cache for its mean, its variance and the result."""
    loop = jit(_forward_loop)
    if loop is None:
        return None

    def forward(x_RC: Array, gain: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
        y_RC, n_RC = np.empty_like(x_RC), np.empty_like(x_RC)
        scale_R1 = np.empty((len(x_RC), 1), np.float32)
        share(
            len(x_RC),
            lambda i, j: loop(
                x_RC[i:j], gain, bias, np.float32(eps), y_RC[i:j], n_RC[i:j], scale_R1[i:j]
            ),
            least=max(1, LEAST // max(1, x_RC.shape[1])),
        )
        return y_RC, n_RC, scale_R1

    return forward


@layer_norm_pullback.variant("numba", library="numpy", when=is_single)
def _numba_pullback() -> Any:
    """All three gradients in one visit to each row."""
    loop = jit(_pullback_loop)
    if loop is None:
        return None

    def pullback(
        g_RC: Array, n_RC: Array, scale_R1: Array, gain: Array
    ) -> tuple[Array, Array, Array]:
        gx_RC = np.empty_like(g_RC)
        sums: dict[int, tuple[Array, Array]] = {}  # of gain and bias, by the first row of a part

        def part(i: int, j: int) -> None:
            sums[i] = np.zeros_like(gain), np.zeros_like(gain)
            loop(g_RC[i:j], n_RC[i:j], scale_R1[i:j], gain, gx_RC[i:j], *sums[i])

        share(len(g_RC), part, least=max(1, LEAST // max(1, g_RC.shape[1])))
        (g_gain, g_bias), *others = (sums[i] for i in sorted(sums))
        for more_gain, more_bias in others:
            g_gain += more_gain
            g_bias += more_bias
        return gx_RC, g_gain, g_bias

    return pullback
