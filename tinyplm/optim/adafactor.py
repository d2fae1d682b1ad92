"""Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (Shazeer & Stern, 2018, arXiv:1804.04235)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..backend import is_array, namespace
from ..errors import ConfigError
from ..types import Array
from .optimizer import Optimizer, as_kind


@dataclass(frozen=True, kw_only=True)
class _Rule:
    decay: float
    clip: float
    eps: float
    least_scale: float
    scaled: bool
    relative: bool
    warm: bool
    weight_decay: float

    def __post_init__(self) -> None:
        for name in ("decay", "clip", "eps", "least_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it must be above 0.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay={self.weight_decay} must not be negative.")


class Adafactor(Optimizer):
    """Steps of gradients over the root of their mean squares, of which a matrix keeps those of rows and columns only.

        b = 1 - t^-decay;  s = g^2 + eps
        R = b R + (1 - b) mean of s over columns;  C = b C + (1 - b) mean of s over rows;  V = R C / mean(R)
        u = g / sqrt(V);  u = u / max(1, RMS(u) / clip);  p = p - lr max(least_scale, RMS(p)) u      (algorithms 4 to 6)

    A parameter with fewer than two axes keeps V itself. Others are factored over their last two axes, however small, as
    transformers does; the code that T5 was trained with factors over the two largest, from 32 rows and columns on. The
    first step knows the new gradient alone.

    Args:
        parameters: by name; one without a gradient is left alone.
        decay: how fast the memory of squares grows, 0.8 in the paper.
        clip: root mean square of a step at most, before the learning rate.
        eps: added to squared gradients.
        least_scale: least root mean square that a parameter is taken to have.
        scaled: steps are multiplied by the parameter's root mean square; T5 does so also with a learning rate of 0.001.
        relative: steps are also multiplied by min(0.01, 1 / sqrt(t)); a learning rate of 1 is the paper's then.
        warm: with `relative`, 1e-6 t takes the place of 0.01.
        weight_decay: per update, times the learning rate (and its factors); none in the paper.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        decay: float = 0.8,
        clip: float = 1.0,
        eps: float = 1e-30,
        least_scale: float = 1e-3,
        scaled: bool = True,
        relative: bool = False,
        warm: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.rule = _Rule(
            decay=decay,
            clip=clip,
            eps=eps,
            least_scale=least_scale,
            scaled=scaled,
            relative=relative,
            warm=warm,
            weight_decay=weight_decay,
        )
        super().__init__(parameters)

    def memory(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        """Mean squares of rows and columns, or of each value."""
        if p.ndim < 2:
            return {"square": p.shape}
        return {"rows": p.shape[:-1], "columns": (*p.shape[:-2], p.shape[-1])}

    def advance(self, learning_rate: float) -> tuple[float, ...]:
        """How much of the squares is kept, how much is new, and the size of steps."""
        self.steps += 1
        rule, t = self.rule, self.steps
        if rule.relative:
            learning_rate *= min(1e-6 * t if rule.warm else 1e-2, 1 / math.sqrt(t))
        kept = 1 - t**-rule.decay
        return kept, 1 - kept, learning_rate

    def update(
        self, p: Array, g: Array, memory: Sequence[Array], numbers: Any, shrink: Any
    ) -> None:
        """One parameter."""
        rule, xp, kind = self.rule, namespace(p), p.dtype.type
        kept, new, size = numbers
        u = g * as_kind(shrink, p)
        s = u * u
        s += kind(rule.eps)
        for squares, axis in zip(memory, (-1, -2) if p.ndim >= 2 else (None,), strict=True):
            squares *= as_kind(kept, p)
            squares += (s if axis is None else s.mean(axis=axis)) * as_kind(new, p)
        if p.ndim >= 2:
            rows, columns = memory
            u /= xp.sqrt(rows / rows.mean(axis=-1, keepdims=True))[..., None]
            u /= xp.sqrt(columns)[..., None, :]
        else:
            u = u / xp.sqrt(memory[0])
        if rule.scaled:
            size = size * _largest(rule.least_scale, _root_mean_square(p))
        if rule.weight_decay:
            p *= as_kind(1 - size * rule.weight_decay, p)
        p -= u * as_kind(size / _largest(1.0, _root_mean_square(u) / rule.clip), p)


def _root_mean_square(x: Array) -> Any:
    """A number in NumPy; on a device it stays there."""
    xp, flat = namespace(x), x.reshape(-1)
    if xp is np:
        return math.sqrt(float(np.dot(flat, flat)) / x.size)
    return xp.sqrt(xp.square(flat).mean())


def _largest(a: float, b: Any) -> Any:
    return namespace(b).maximum(a, b) if is_array(b) else max(a, b)
