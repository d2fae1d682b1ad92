"""Normalisation layers."""

from typing import cast

from ..autograd import Tensor, ops
from ..types import Generator
from . import init
from .module import Module


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axis, then gain and bias."""

    def __init__(self, width: int, *, eps: float = 1e-5, rng: Generator | None) -> None:
        self.gain = init.ones(rng, (width,))
        self.bias = init.zeros(rng, (width,))
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """From (..., width) to the same."""
        return ops.layer_norm(x, self.gain, self.bias, eps=self.eps)

    def add(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of both, and that normalised; x itself is the sum without a branch."""
        if branch is None:
            return x, self(x)
        both = ops.residual_layer_norm(x, branch, self.gain, self.bias, eps=self.eps)
        return cast(tuple[Tensor, Tensor], both)


class RMSNorm(Module):
    """Root mean square 1 over the last axis, then gain."""

    def __init__(self, width: int, *, eps: float = 1e-6, rng: Generator | None) -> None:
        self.gain = init.ones(rng, (width,))
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """From (..., width) to the same."""
        return ops.rms_norm(x, self.gain, eps=self.eps)

    def add(self, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of both, and that normalised; x itself is the sum without a branch."""
        if branch is None:
            return x, self(x)
        both = ops.residual_rms_norm(x, branch, self.gain, eps=self.eps)
        return cast(tuple[Tensor, Tensor], both)
