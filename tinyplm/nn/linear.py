"""The linear layer."""

from ..autograd import Tensor, ops
from ..types import Generator
from . import init
from .module import Module


class Linear(Module):
    """y = x W + b over the last axis; any leading axes. The weight is (width_in, width_out)."""

    def __init__(
        self, width_in: int, width_out: int, *, std: float = 0.02, rng: Generator | None
    ) -> None:
        self.weight = init.normal(rng, (width_in, width_out), std)
        self.bias = init.zeros(rng, (width_out,))

    def __call__(self, x: Tensor) -> Tensor:
        """From (..., width_in) to (..., width_out)."""
        return ops.linear(x, self.weight, self.bias)
