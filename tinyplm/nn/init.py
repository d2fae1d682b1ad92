"""New parameters. With rng=None they are placeholders that have a shape and take no memory."""

import numpy as np

from ..autograd import Tensor
from ..types import Array, Generator

Shape = tuple[int, ...]


def _parameter(rng: Generator | None, shape: Shape, values: Array | None) -> Tensor:
    if rng is None or values is None:
        return Tensor.wrap(np.broadcast_to(np.float32(0), shape), requires_grad=True)
    return Tensor.wrap(values, requires_grad=True)


def normal(rng: Generator | None, shape: Shape, std: float = 0.02) -> Tensor:
    """Normal with mean 0 and the given standard deviation, float32."""
    if rng is None:
        return _parameter(rng, shape, None)
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return _parameter(rng, shape, values)


def zeros(rng: Generator | None, shape: Shape) -> Tensor:
    """All 0, float32."""
    return _parameter(rng, shape, None if rng is None else np.zeros(shape, np.float32))


def ones(rng: Generator | None, shape: Shape) -> Tensor:
    """All 1, float32."""
    return _parameter(rng, shape, None if rng is None else np.ones(shape, np.float32))
