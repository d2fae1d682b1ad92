"""Normalisation over the last axis, alone or of the sum that a residual branch makes."""

from typing import Any

from ...errors import ShapeError
from ...kernels import layer_norm as kernels
from ...types import Array, Pullback
from ..engine import op
from .broadcasting import kernels_round, like, same_precision, unbroadcast
from .elementwise import quiet

Gradients = tuple[Array | None, Array | None]


@op
@kernels_round
@quiet
def layer_norm(x: Array, gain: Array, bias: Array, *, eps: float = 1e-5) -> tuple[Array, Pullback]:
    """Scale the last axis to mean zero and variance one, then by gain and bias.

        y = gain * (x - mean(x)) / sqrt(var(x) + eps) + bias        (Ba et al., 2016, eqs. 3-4)

    Shapes:
        x: (..., D) float; gain, bias: (D,); result: (..., D), dtype of x.

    Gradient:
        With n the normalised x and h = g * gain,
        gx = (h - mean(h) - n * mean(h * n)) / sqrt(var(x) + eps).

    Numerics:
        Variance is the mean of squared deviations, not E[x^2] - E[x]^2.

    Raises:
        ShapeError: gain or bias does not match the last axis of x.
    """
    _check("layer_norm", x, gain, bias)
    shape = x.shape
    x_RC, y, mean_R1, scale_R1 = kernels.layer_norm_forward(_rows(x), None, gain, bias, eps)

    def pullback(g: Array) -> tuple[Array, Array, Array]:
        gx, g_gain, g_bias = kernels.layer_norm_pullback(
            _rows(g), None, x_RC, mean_R1, scale_R1, gain
        )
        return gx.reshape(shape), g_gain, g_bias

    return y.reshape(shape), pullback


@op
@kernels_round
@quiet
def rms_norm(x: Array, gain: Array, *, eps: float = 1e-6) -> tuple[Array, Pullback]:
    """Scale the last axis to root mean square one, then by gain.

        y = gain * x / sqrt(mean(x^2) + eps)        (Zhang & Sennrich, 2019, eq. 4)

    Shapes:
        x: (..., D) float; gain: (D,); result: (..., D).

    Raises:
        ShapeError: gain does not match the last axis of x.
    """
    _check("rms_norm", x, gain)
    shape = x.shape
    x_RC, y, scale_R1 = kernels.rms_norm_forward(_rows(x), None, gain, eps)

    def pullback(g: Array) -> tuple[Array, Array]:
        gx, g_gain = kernels.rms_norm_pullback(_rows(g), None, x_RC, scale_R1, gain)
        return gx.reshape(shape), g_gain

    return y.reshape(shape), pullback


@op
@kernels_round
@quiet
def residual_layer_norm(
    x: Array, branch: Array, gain: Array, bias: Array, *, eps: float = 1e-5
) -> tuple[tuple[Array, Array], Pullback]:
    """The sum x + branch, and its layer_norm, in one pass over the values.

    Shapes:
        x, branch: (..., D) float, of one shape; gain, bias: (D,); both results: (..., D).

    Raises:
        ShapeError: x and branch differ in shape, or gain or bias does not match their last axis.
    """
    _check("residual_layer_norm", x, gain, bias, branch=branch)
    shape, x_like, branch_like = x.shape, like(x), like(branch)
    sum_RC, y, mean_R1, scale_R1 = kernels.layer_norm_forward(
        _rows(x), _rows(branch), gain, bias, eps
    )
    same_precision(sum_RC, x, branch)

    def pullback(gs: Gradients) -> tuple[Any, ...]:
        g_sum, g = gs
        if g is None:
            g_gain = g_bias = None
        else:
            g_sum, g_gain, g_bias = kernels.layer_norm_pullback(
                _rows(g), None if g_sum is None else _rows(g_sum), sum_RC, mean_R1, scale_R1, gain
            )
        gx = g_sum.reshape(shape)  # type: ignore[union-attr]  # one of the two has arrived
        return unbroadcast(gx, x_like), unbroadcast(gx, branch_like), g_gain, g_bias

    return (sum_RC.reshape(shape), y.reshape(shape)), pullback


@op
@kernels_round
@quiet
def residual_rms_norm(
    x: Array, branch: Array, gain: Array, *, eps: float = 1e-6
) -> tuple[tuple[Array, Array], Pullback]:
    """The sum x + branch, and its rms_norm, in one pass over the values.

    Shapes:
        x, branch: (..., D) float, of one shape; gain: (D,); both results: (..., D).

    Raises:
        ShapeError: x and branch differ in shape, or gain does not match their last axis.
    """
    _check("residual_rms_norm", x, gain, branch=branch)
    shape, x_like, branch_like = x.shape, like(x), like(branch)
    sum_RC, y, scale_R1 = kernels.rms_norm_forward(_rows(x), _rows(branch), gain, eps)
    same_precision(sum_RC, x, branch)

    def pullback(gs: Gradients) -> tuple[Any, ...]:
        g_sum, g = gs
        g_gain = None
        if g is not None:
            g_sum, g_gain = kernels.rms_norm_pullback(
                _rows(g), None if g_sum is None else _rows(g_sum), sum_RC, scale_R1, gain
            )
        gx = g_sum.reshape(shape)  # type: ignore[union-attr]  # one of the two has arrived
        return unbroadcast(gx, x_like), unbroadcast(gx, branch_like), g_gain

    return (sum_RC.reshape(shape), y.reshape(shape)), pullback


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _check(
    name: str, x: Array, gain: Array, bias: Array | None = None, *, branch: Array | None = None
) -> None:
    width = x.shape[-1:]
    if gain.shape != width or (bias is not None and bias.shape != width):
        needs, got = (
            ("gain needs", gain.shape)
            if bias is None
            else ("gain and bias need", f"{gain.shape}, {bias.shape}")
        )
        raise ShapeError(f"{name}: x has shape {x.shape}, so {needs} shape {width}; got {got}.")
    if branch is not None and branch.shape != x.shape:
        raise ShapeError(
            f"{name}: x has shape {x.shape} and branch {branch.shape}; a residual branch must give back the shape "
            "that it was given."
        )
