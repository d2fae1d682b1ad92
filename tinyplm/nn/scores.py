"""Scores of one vector of attention: how well each state of an encoder fits the state of a decoder.

Bahdanau, Cho and Bengio, 2014, arXiv:1409.0473; Luong, Pham and Manning, 2015, arXiv:1508.04025.

Axes: B batch, T queries, S keys, H width of a state.
"""

import math

from ..autograd import Tensor, ops
from ..types import Generator
from . import init
from .module import Module


class Dot(Module):
    """The inner product of states of one width (Luong et al., eq. 8)."""

    def keys(self, annotations: Tensor) -> Tensor:
        """What queries are compared with."""
        return annotations

    def __call__(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S) of queries (B, T, H) and keys (B, S, H)."""
        return ops.matmul(query, ops.transpose(keys, axes=(0, 2, 1)))


class General(Dot):
    """The inner product behind a matrix (Luong et al., eq. 8)."""

    def __init__(self, width: int, width_key: int, *, rng: Generator | None) -> None:
        self.project = init.uniform(rng, (width_key, width), 1 / math.sqrt(width_key))

    def keys(self, annotations: Tensor) -> Tensor:
        """What queries are compared with: computed once for a source."""
        return ops.linear(annotations, self.project)


class Additive(Module):
    """v' tanh(W h + U e): a network of one hidden layer (Bahdanau et al., appendix A.1.2; Luong's "concat")."""

    def __init__(self, width: int, width_key: int, *, rng: Generator | None) -> None:
        self.project_query = init.uniform(rng, (width, width), 1 / math.sqrt(width))
        self.project_key = init.uniform(rng, (width_key, width), 1 / math.sqrt(width_key))
        self.weight = init.uniform(rng, (width,), 1 / math.sqrt(width))

    def keys(self, annotations: Tensor) -> Tensor:
        """U e, computed once for a source."""
        return ops.linear(annotations, self.project_key)

    def __call__(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, T, S) of queries (B, T, H) and keys (B, S, H)."""
        q = ops.linear(query, self.project_query)
        return ops.matmul(ops.tanh(q[:, :, None] + keys[:, None]), self.weight)
