"""Normalisation over the last axis."""

from ...errors import ShapeError
from ...kernels import layer_norm as kernels
from ...types import Array, Pullback
from ..engine import op
from .broadcasting import at_least_float32
from .elementwise import quiet


@op
@at_least_float32
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
    width = x.shape[-1:]
    if gain.shape != width or bias.shape != width:
        raise ShapeError(
            f"layer_norm: x has shape {x.shape}, so gain and bias need shape {width}; got {gain.shape}, {bias.shape}."
        )
    shape = x.shape
    y, n_RC, scale_R1 = kernels.layer_norm_forward(x.reshape(-1, *width), gain, bias, eps)

    def pullback(g: Array) -> tuple[Array, Array, Array]:
        gx, g_gain, g_bias = kernels.layer_norm_pullback(
            g.reshape(-1, *width), n_RC, scale_R1, gain
        )
        return gx.reshape(shape), g_gain, g_bias

    return y.reshape(shape), pullback


@op
@at_least_float32
@quiet
def rms_norm(x: Array, gain: Array, *, eps: float = 1e-6) -> tuple[Array, Pullback]:
    """Scale the last axis to root mean square one, then by gain.

        y = gain * x / sqrt(mean(x^2) + eps)        (Zhang & Sennrich, 2019, eq. 4)

    Shapes:
        x: (..., D) float; gain: (D,); result: (..., D).

    Raises:
        ShapeError: gain does not match the last axis of x.
    """
    width = x.shape[-1:]
    if gain.shape != width:
        raise ShapeError(
            f"rms_norm: x has shape {x.shape}, so gain needs shape {width}; got {gain.shape}."
        )
    shape = x.shape
    y, n_RC, scale_R1 = kernels.rms_norm_forward(x.reshape(-1, *width), gain, eps)

    def pullback(g: Array) -> tuple[Array, Array]:
        gx, g_gain = kernels.rms_norm_pullback(g.reshape(-1, *width), n_RC, scale_R1, gain)
        return gx.reshape(shape), g_gain

    return y.reshape(shape), pullback
