"""Stochastic gradient descent, with momentum if wanted (Polyak, 1964; in the form of Sutskever et al., 2013)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..autograd import Tensor
from ..errors import ConfigError
from ..types import Array
from .optimizer import Optimizer, as_kind


class SGD(Optimizer):
    """p -= lr (u + decay p), where u = momentum u + g.

    Args:
        parameters: by name; one without a gradient is left alone.
        momentum: share of the last update that is kept.
        weight_decay: per update, times the learning rate; of matrices only.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        if not (0 <= momentum < 1 and 0 <= weight_decay < math.inf):
            raise ConfigError(
                f"momentum={momentum} must be at least 0 and below 1, weight_decay={weight_decay} not negative."
            )
        self.momentum = momentum
        self.weight_decay = weight_decay
        super().__init__(parameters)

    def memory(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        """The velocity, by the name of the parameter alone."""
        return {"": p.shape} if self.momentum else {}

    def advance(self, learning_rate: float) -> tuple[float, ...]:
        """The learning rate, and what decay leaves."""
        self.steps += 1
        return learning_rate, 1 - learning_rate * self.weight_decay

    def update(
        self, p: Array, g: Array, memory: Sequence[Array], numbers: Any, shrink: Any
    ) -> None:
        """One parameter."""
        update = g * as_kind(shrink, p)
        for velocity in memory:
            velocity *= p.dtype.type(self.momentum)
            velocity += update
            update = velocity
        if self.weight_decay and p.ndim >= 2:
            p *= as_kind(numbers[1], p)
        p -= update * as_kind(numbers[0], p)
