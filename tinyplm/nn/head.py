"""From hidden states to logits over a vocabulary."""

from ..autograd import Tensor, ops
from .module import Module


class Head(Module):
    """Logits x W' (+ b). The weight is (V, D), a row per token, so that it may be an embedding's own."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return ops.linear(x, ops.transpose(self.weight), self.bias)
