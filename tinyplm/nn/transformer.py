"""Residual wiring of attention and feed-forward, nothing else."""

from typing import Any

from ..autograd import Tensor, ops
from ..types import Generator
from .module import Module


class PreNormBlock(Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on both branches."""

    def __init__(
        self,
        attention: Module,
        feed_forward: Module,
        norm_1: Module,
        norm_2: Module,
        *,
        dropout: float = 0.0,
    ) -> None:
        self.norm_1 = norm_1
        self.attention = attention
        self.norm_2 = norm_2
        self.feed_forward = feed_forward
        self.dropout = dropout

    def __call__(self, x: Tensor, *, rng: Generator | None = None, **seen: Any) -> Tensor:
        """Keywords other than rng say what attention sees, and go there."""
        y = self.attention(self.norm_1(x), rng=rng, **seen)
        x = x + ops.dropout(y, rate=self.dropout, rng=rng)
        y = self.feed_forward(self.norm_2(x))
        return x + ops.dropout(y, rate=self.dropout, rng=rng)
