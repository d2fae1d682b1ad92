"""Rows of a table by number."""

from ..autograd import Tensor, ops
from ..types import Array, Generator
from . import init
from .module import Module
from .quantized import Quantized


class Embedding(Module):
    """A learned row (width,) for each of a number of things. The weight is (rows, width)."""

    weight: Tensor | Quantized

    def __init__(self, rows: int, width: int, *, std: float = 0.02, rng: Generator | None) -> None:
        self.weight = init.normal(rng, (rows, width), std)

    def __call__(self, ids: Array) -> Tensor:
        """Rows (..., width) of ids of any shape."""
        if isinstance(self.weight, Quantized):
            return self.weight.take_rows(ids)
        return ops.take_rows(self.weight, ids)
