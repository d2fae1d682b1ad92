"""The two-layer block between attentions."""

from collections.abc import Callable

from ..autograd import Tensor, ops
from ..types import Generator
from .linear import Linear
from .module import Module

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": ops.gelu,
    "gelu_tanh": ops.gelu_tanh,
    "relu": ops.relu,
    "silu": ops.silu,
    "tanh": ops.tanh,
}
"""Nonlinearities by the names that configs use."""


class FeedForward(Module):
    """Widen, bend, narrow: contract(activation(expand(x)))."""

    def __init__(
        self,
        width: int,
        ffn_size: int,
        *,
        activation: Callable[[Tensor], Tensor],
        std: float = 0.02,
        std_out: float = 0.02,
        rng: Generator | None,
    ) -> None:
        self.expand = Linear(width, ffn_size, std=std, rng=rng)
        self.activation = activation
        self.contract = Linear(ffn_size, width, std=std_out, rng=rng)

    def __call__(self, x: Tensor) -> Tensor:
        """From (..., width) to the same."""
        return self.contract(self.expand(x, activation=self.activation))
