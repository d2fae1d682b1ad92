"""Residual wiring of attention and feed-forward, nothing else."""

from typing import Any

from ..autograd import Tensor, ops
from ..types import Generator
from .module import Module
from .norm import LayerNorm, RMSNorm


class PreNormBlock(Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on both branches.

    The last addition is left to the next norm, which reads the sum anyway: a block takes and gives the stream x and a
    branch that is still to be added. A stack ends with `_, y = norm.add(x, branch)`.
    """

    def __init__(
        self,
        attention: Module,
        feed_forward: Module,
        norm_1: LayerNorm | RMSNorm,
        norm_2: LayerNorm | RMSNorm,
        *,
        dropout: float = 0.0,
    ) -> None:
        self.norm_1 = norm_1
        self.attention = attention
        self.norm_2 = norm_2
        self.feed_forward = feed_forward
        self.dropout = dropout

    def __call__(
        self, x: Tensor, branch: Tensor | None, *, rng: Generator | None = None, **seen: Any
    ) -> tuple[Tensor, Tensor]:
        """Keywords other than rng say what attention sees, and go there; the first block has no branch to add."""
        x, y = self.norm_1.add(x, branch)
        y = ops.dropout(self.attention(y, rng=rng, **seen), rate=self.dropout, rng=rng)
        x, y = self.norm_2.add(x, y)
        return x, ops.dropout(self.feed_forward(y), rate=self.dropout, rng=rng)


class PostNormBlock(Module):
    """norm(x + attention(x)), then norm(x + feed_forward(x)); dropout on both branches."""

    def __init__(
        self,
        attention: Module,
        feed_forward: Module,
        norm_1: LayerNorm | RMSNorm,
        norm_2: LayerNorm | RMSNorm,
        *,
        dropout: float = 0.0,
    ) -> None:
        self.attention = attention
        self.norm_1 = norm_1
        self.feed_forward = feed_forward
        self.norm_2 = norm_2
        self.dropout = dropout

    def __call__(self, x: Tensor, *, rng: Generator | None = None, **seen: Any) -> Tensor:
        """Keywords other than rng say what attention sees, and go there."""
        y = ops.dropout(self.attention(x, rng=rng, **seen), rate=self.dropout, rng=rng)
        _, x = self.norm_1.add(x, y)
        y = ops.dropout(self.feed_forward(x), rate=self.dropout, rng=rng)
        return self.norm_2.add(x, y)[1]
