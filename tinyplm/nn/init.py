"""New parameters. With rng=None they are placeholders that have a shape and take no memory."""

from typing import Any

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


def uniform(rng: Generator | None, shape: Shape, bound: float) -> Tensor:
    """Uniform from minus the bound to the bound, float32."""
    if rng is None:
        return _parameter(rng, shape, None)
    values = rng.random(shape, dtype=np.float32)
    values *= np.float32(2 * bound)
    values -= np.float32(bound)
    return _parameter(rng, shape, values)


def zeros(rng: Generator | None, shape: Shape) -> Tensor:
    """All 0, float32."""
    return _parameter(rng, shape, None if rng is None else np.zeros(shape, np.float32))


def ones(rng: Generator | None, shape: Shape) -> Tensor:
    """All 1, float32."""
    return _parameter(rng, shape, None if rng is None else np.ones(shape, np.float32))


class Truncated(np.random.Generator):
    """Draws from another generator's stream, with what lies beyond two standard deviations drawn again.

    So TensorFlow's `truncated_normal` does. The values' own standard deviation is 0.88 of what is asked for.
    """

    def __init__(self, rng: Generator) -> None:
        super().__init__(rng.bit_generator)

    def standard_normal(self, *args: Any, **kwargs: Any) -> Any:
        """Standard normal numbers from -2 to 2."""
        values = np.asarray(super().standard_normal(*args, **kwargs))
        while (beyond := np.abs(values) > 2).any():
            values[beyond] = super().standard_normal(int(beyond.sum()), dtype=values.dtype)
        return values
