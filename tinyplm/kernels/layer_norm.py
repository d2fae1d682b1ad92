"""Layer and root-mean-square normalisation of rows, with the pullbacks."""

import numpy as np

from ..backend import namespace
from ..types import Array
from .registry import Kernel


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
