"""AdamW: Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019, arXiv:1711.05101), algorithm 2."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..autograd import Tensor
from ..errors import ConfigError
from ..kernels.adam import Updates, UpdatesOnDevice, adamw_update, are_same, updates_of
from ..types import Array
from .optimizer import Optimizer


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


class AdamW(Optimizer):
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
        super().__init__(parameters)
        # Kept, as a graph may use them.
        self._updates: dict[tuple[str, ...], Updates | UpdatesOnDevice] = {}

    def memory(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        """Both moments."""
        return {"mean": p.shape, "square": p.shape}

    def advance(self, learning_rate: float) -> tuple[float, ...]:
        """As kernels.adam.NUMBERS has them."""
        self.steps += 1
        rule = self.rule
        correction = 1 - rule.beta_1**self.steps
        root_correction = math.sqrt(1 - rule.beta_2**self.steps)
        return (
            *(1 - learning_rate * rule.weight_decay, rule.beta_1, rule.beta_2),
            *(1 - rule.beta_1, 1 - rule.beta_2),
            *(learning_rate / correction, 1 / root_correction, rule.eps),
        )

    def update(
        self, p: Array, g: Array, memory: Sequence[Array], numbers: Any, shrink: Any
    ) -> None:
        """One parameter by itself."""
        decay = numbers[0] if p.ndim >= 2 else 1.0
        arrays = p, g, *memory
        if p.ndim == 0:  # arithmetic on an array without axes gives no array in NumPy
            arrays = tuple(a.reshape(1) for a in arrays)
        adamw_update(*arrays, shrink, decay, *(numbers[i] for i in range(1, len(numbers))))

    def apply(self, numbers: Any, shrink: Any = 1.0) -> None:
        """All parameters in one loop, or one launch, where that can be."""
        given = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        behind = [self.values_behind(name, self.parameters[name]) for name in given]
        values = [value for value, _ in behind]
        updates = self._updates.get(tuple(given))
        if updates is None or not are_same(values, updates.p):
            memory = [self._memory[name] for name in given]
            updates = updates_of(
                values,
                [m["mean"] for m in memory],
                [m["square"] for m in memory],
                [value.ndim >= 2 for value in values],
                [copy for _, copy in behind],
            )
        if updates is None:
            super().apply(numbers, shrink)
        else:
            self._updates[tuple(given)] = updates
            updates(list(given.values()), numbers, shrink)
