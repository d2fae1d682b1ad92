"""AdamW: Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019, arXiv:1711.05101), algorithm 2."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..autograd import Tensor
from ..backend import namespace
from ..errors import ConfigError
from ..kernels.adam import Updates
from ..types import Array


@dataclass(frozen=True, kw_only=True)
class _Rule:
    beta_1: float
    beta_2: float
    eps: float
    weight_decay: float

    def __post_init__(self) -> None:
        for name in ("beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, but it must be at least 0 and below 1."
                )
        if not (0 < self.eps < math.inf and 0 <= self.weight_decay < math.inf):
            raise ConfigError(
                f"eps={self.eps} must be above 0 and weight_decay={self.weight_decay} not negative."
            )


class AdamW:
    """Adam with weight decay that does not pass through the moments.

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        p = p (1 - lr decay) - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

    Only matrices decay: gains, biases and other parameters of one axis do not.

    Args:
        parameters: by name; every one needs a gradient at each step, or is left alone.
        beta_1: memory of the mean gradient.
        beta_2: memory of the mean squared gradient.
        eps: added to the root.
        weight_decay: per update, times the learning rate.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        self.rule = _Rule(beta_1=beta_1, beta_2=beta_2, eps=eps, weight_decay=weight_decay)
        self.parameters = dict(parameters)
        self.steps = 0
        self._moments: dict[str, tuple[Array, Array]] = {}
        for name, p in self.parameters.items():
            xp = namespace(p.array)
            self._moments[name] = (xp.zeros(p.shape, p.dtype), xp.zeros(p.shape, p.dtype))
        self._updates = Updates([], [], [])

    def step(self, learning_rate: float, *, shrink: float = 1.0) -> None:
        """Update every parameter from its gradient, multiplied by shrink (for clipping)."""
        self.steps += 1
        rule = self.rule
        correction = 1 - rule.beta_1**self.steps
        root_correction = math.sqrt(1 - rule.beta_2**self.steps)
        least = 1 - learning_rate * rule.weight_decay
        names, values, gradients, decay = [], [], [], []
        for name, p in self.parameters.items():
            if p.grad is not None:
                names.append(name)
                values.append(p.write())
                gradients.append(p.grad)
                decay.append(least if p.ndim >= 2 else 1.0)
        if not self._updates.are_of(values):
            moments = [self._moments[name] for name in names]
            self._updates = Updates(values, [m for m, _ in moments], [v for _, v in moments])
        self._updates(
            gradients,
            decay,
            shrink,
            rule.beta_1,
            rule.beta_2,
            learning_rate / correction,
            root_correction,
            rule.eps,
        )

    def arrays(self) -> dict[str, Array]:
        """Both moments of every parameter, to be saved."""
        return {
            f"{kind}.{name}": moment
            for name, pair in self._moments.items()
            for kind, moment in zip(("mean", "square"), pair, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """What else must be saved."""
        return {"steps": self.steps}

    def restore(self, arrays: Mapping[str, Array], state: Mapping[str, Any]) -> None:
        """Go on from what arrays() and state() returned."""
        self.steps = int(state["steps"])
        for name, (m, v) in self._moments.items():
            m[...] = arrays[f"mean.{name}"]
            v[...] = arrays[f"square.{name}"]
