"""The two-layer block between attentions."""

from collections.abc import Callable

from ..autograd import Tensor, ops
from ..types import Generator
from .linear import GELU, Linear
from .module import Module
from .quantized import Quantized

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": ops.gelu,
    "gelu_tanh": ops.gelu_tanh,
    "relu": ops.relu,
    "silu": ops.silu,
    "tanh": ops.tanh,
}
"""Nonlinearities by the names that configs use."""


class FeedForward(Module):
    """Widen, bend, narrow: contract(drop(activation(expand(x))))."""

    def __init__(
        self,
        width: int,
        ffn_size: int,
        *,
        activation: Callable[[Tensor], Tensor],
        bias: bool = True,
        dropout: float = 0.0,
        std: float = 0.02,
        std_out: float = 0.02,
        rng: Generator | None,
    ) -> None:
        self.expand = Linear(width, ffn_size, bias=bias, std=std, rng=rng)
        self.activation = activation
        self.dropout = dropout
        self.contract = Linear(ffn_size, width, bias=bias, std=std_out, rng=rng)

    def __call__(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """From (..., width) to the same; with rng, what is in the middle is dropped at the rate `dropout`."""
        expand, contract = self.expand, self.contract
        whole = rng is None or not self.dropout  # nothing is dropped between them
        if whole and self.activation in GELU and not _is_quantized(expand, contract):
            weights = expand.weight, expand.bias, contract.weight, contract.bias
            return ops.feed_forward(x, *weights, approximate=GELU[self.activation])
        y = expand(x, activation=self.activation)
        return contract(ops.dropout(y, rate=self.dropout, rng=rng))


def _is_quantized(*layers: Linear) -> bool:
    return any(isinstance(layer.weight, Quantized) for layer in layers)


class GatedFeedForward(Module):
    """Widen twice, one bent and as a gate of the other: contract(drop(activation(gate(x)) * expand(x))).

    GLU Variants Improve Transformer (Shazeer, 2020, arXiv:2002.05202), eq. 6; no biases there.
    """

    def __init__(
        self,
        width: int,
        ffn_size: int,
        *,
        activation: Callable[[Tensor], Tensor],
        bias: bool = False,
        dropout: float = 0.0,
        std: float = 0.02,
        std_out: float = 0.02,
        rng: Generator | None,
    ) -> None:
        self.gate = Linear(width, ffn_size, bias=bias, std=std, rng=rng)
        self.expand = Linear(width, ffn_size, bias=bias, std=std, rng=rng)
        self.activation = activation
        self.dropout = dropout
        self.contract = Linear(ffn_size, width, bias=bias, std=std_out, rng=rng)

    def __call__(self, x: Tensor, *, rng: Generator | None = None) -> Tensor:
        """From (..., width) to the same; with rng, what is in the middle is dropped at the rate `dropout`."""
        y = self.gate(x, activation=self.activation) * self.expand(x)
        return self.contract(ops.dropout(y, rate=self.dropout, rng=rng))
