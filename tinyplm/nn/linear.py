"""The linear layer."""

from collections.abc import Callable
from typing import Any

from ..autograd import Tensor, ops
from ..types import Generator
from . import init
from .module import Module
from .quantized import Quantized

GELU: dict[Any, str] = {ops.gelu: "none", ops.gelu_tanh: "tanh"}
"""Nonlinearities that are computed with the product before them."""


class Linear(Module):
    """y = x W + b over the last axis; any leading axes. The weight is (width_in, width_out)."""

    weight: Tensor | Quantized
    bias: Tensor | None

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        bias: bool = True,
        std: float = 0.02,
        rng: Generator | None,
    ) -> None:
        self.weight = init.normal(rng, (width_in, width_out), std)
        self.bias = init.zeros(rng, (width_out,)) if bias else None

    def __call__(
        self, x: Tensor, *, activation: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """From (..., width_in) to (..., width_out), through a nonlinearity if one is given."""
        if isinstance(self.weight, Quantized):
            y = self.weight.linear(x, self.bias)
        elif activation in GELU:
            return ops.linear_gelu(x, self.weight, self.bias, approximate=GELU[activation])
        else:
            y = ops.linear(x, self.weight, self.bias)
        return y if activation is None else activation(y)
