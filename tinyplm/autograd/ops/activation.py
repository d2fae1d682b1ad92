"""Nonlinearities and softmax."""

import numpy as np

from ...backend import namespace
from ...kernels import gelu as gelu_kernels
from ...kernels import softmax as softmax_kernels
from ...kernels.relu import relu_forward, relu_pullback
from ...types import Array, Pullback
from ..engine import op
from .broadcasting import at_least_float32, kernels_round
from .elementwise import logistic, quiet


@op
def relu(x: Array) -> tuple[Array, Pullback]:
    """X where positive, else 0; the gradient at 0 is 0."""
    y = relu_forward(x)
    return y, lambda g: relu_pullback(g, y)


@op
@kernels_round
@quiet
def gelu(x: Array) -> tuple[Array, Pullback]:
    """X times the normal distribution function of x, by the error function (Hendrycks & Gimpel, 2016)."""
    return gelu_kernels.gelu_forward(x), lambda g: gelu_kernels.gelu_pullback(g, x)


@op
@kernels_round
@quiet
def gelu_tanh(x: Array) -> tuple[Array, Pullback]:
    """GELU by its tanh approximation, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as in GPT-2."""
    return gelu_kernels.gelu_tanh_forward(x), lambda g: gelu_kernels.gelu_tanh_pullback(g, x)


@op
@at_least_float32
@quiet
def silu(x: Array) -> tuple[Array, Pullback]:
    """X times the sigmoid of x; also called swish."""
    s = logistic(x)
    return x * s, lambda g: g * (s * (1 + x * (1 - s)))


@op
@at_least_float32
@quiet
def softmax(x: Array, *, axis: int = -1) -> tuple[Array, Pullback]:
    """Exponentials along axis, scaled to sum to one.

    Where all values along the axis are minus infinity the result is 0, not NaN; so is the gradient.
    """
    y = softmax_kernels.softmax_forward(x, axis)
    return y, lambda g: softmax_kernels.softmax_pullback(g, y, axis)


@op
@at_least_float32
@quiet
def log_softmax(x: Array, *, axis: int = -1) -> tuple[Array, Pullback]:
    """Logarithm of the softmax along axis, exact where the softmax underflows.

    Where all values along the axis are minus infinity so is the result, and the softmax in its gradient
    g - softmax(x) sum(g) is 0.
    """
    xp, nothing = namespace(x), x.dtype.type(0)
    top = softmax_kernels.highest(x, axis)
    shifted = x - xp.where(top == -np.inf, nothing, top)
    total = xp.exp(shifted).sum(axis=axis, keepdims=True)
    y = shifted - xp.log(xp.where(total == 0, nothing + 1, total))
    return y, lambda g: g - xp.exp(y) * g.sum(axis=axis, keepdims=True)
