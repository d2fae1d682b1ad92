"""Stochastic gradient descent, with momentum if wanted (Polyak, 1964; in the form of Sutskever et al., 2013)."""

import math
from collections.abc import Mapping
from typing import Any

from ..autograd import Tensor
from ..backend import namespace
from ..errors import ConfigError
from ..types import Array


class SGD:
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
        self.parameters = dict(parameters)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._velocity: dict[str, Array] = {}
        if momentum:
            for name, p in self.parameters.items():
                self._velocity[name] = namespace(p.array).zeros(p.shape, p.dtype)

    def step(self, learning_rate: float, *, shrink: float = 1.0) -> None:
        """Update every parameter from its gradient, multiplied by shrink (for clipping)."""
        for name, p in self.parameters.items():
            if p.grad is None:
                continue
            kind = p.dtype.type
            update = p.grad * kind(shrink)
            if self.momentum:
                velocity = self._velocity[name]
                velocity *= kind(self.momentum)
                velocity += update
                update = velocity
            values = p.write()
            if self.weight_decay and p.ndim >= 2:
                values *= kind(1 - learning_rate * self.weight_decay)
            values -= update * kind(learning_rate)

    def arrays(self) -> dict[str, Array]:
        """The velocity of every parameter, to be saved; nothing without momentum."""
        return dict(self._velocity)

    def state(self) -> dict[str, Any]:
        """What else must be saved."""
        return {}

    def restore(self, arrays: Mapping[str, Array], state: Mapping[str, Any]) -> None:
        """Go on from what arrays() and state() returned."""
        for name, velocity in self._velocity.items():
            velocity[...] = arrays[name]
