"""Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (Shazeer & Stern, 2018, arXiv:1804.04235)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..autograd import Tensor
from ..backend import namespace
from ..errors import ConfigError
from ..types import Array


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


class Adafactor:
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
        self.parameters = dict(parameters)
        self.steps = 0
        self._squares: dict[str, tuple[Array, ...]] = {}
        for name, p in self.parameters.items():
            xp = namespace(p.array)
            shapes = [p.shape]
            if p.ndim >= 2:
                shapes = [p.shape[:-1], (*p.shape[:-2], p.shape[-1])]
            self._squares[name] = tuple(xp.zeros(shape, p.dtype) for shape in shapes)

    def step(self, learning_rate: float, *, shrink: float = 1.0) -> None:
        """Update every parameter from its gradient, multiplied by shrink (for clipping)."""
        self.steps += 1
        rule, t = self.rule, self.steps
        if rule.relative:
            learning_rate *= min(1e-6 * t if rule.warm else 1e-2, 1 / math.sqrt(t))
        for name, p in self.parameters.items():
            if p.grad is not None and p.size:
                self._update(p, p.grad, self._squares[name], learning_rate, shrink)

    def _update(
        self, p: Tensor, g: Array, squares: tuple[Array, ...], learning_rate: float, shrink: float
    ) -> None:
        rule, xp, kind = self.rule, namespace(p.array), p.dtype.type
        memory = 1 - self.steps**-rule.decay
        u = g * kind(shrink)
        s = u * u
        s += kind(rule.eps)
        for kept, axis in zip(squares, (-1, -2) if p.ndim >= 2 else (None,), strict=True):
            kept *= kind(memory)
            kept += (s if axis is None else s.mean(axis=axis)) * kind(1 - memory)
        if p.ndim >= 2:
            rows, columns = squares
            u /= xp.sqrt(rows / rows.mean(axis=-1, keepdims=True))[..., None]
            u /= xp.sqrt(columns)[..., None, :]
        else:
            u = u / xp.sqrt(squares[0])
        size = learning_rate
        if rule.scaled:
            size *= max(rule.least_scale, _root_mean_square(p.array))
        values = p.write()
        if rule.weight_decay:
            values *= kind(1 - size * rule.weight_decay)
        values -= u * kind(size / max(1.0, _root_mean_square(u) / rule.clip))

    def arrays(self) -> dict[str, Array]:
        """Mean squares of every parameter, to be saved: of rows and columns, or of each value."""
        return {
            f"{kind}.{name}": kept
            for name, squares in self._squares.items()
            for kind, kept in zip(
                ("rows", "columns") if squares[1:] else ("square",), squares, strict=True
            )
        }

    def state(self) -> dict[str, Any]:
        """What else must be saved."""
        return {"steps": self.steps}

    def restore(self, arrays: Mapping[str, Array], state: Mapping[str, Any]) -> None:
        """Go on from what arrays() and state() returned."""
        self.steps = int(state["steps"])
        for name, kept in self.arrays().items():
            kept[...] = arrays[name]


def _root_mean_square(x: Array) -> float:
    xp = namespace(x)
    flat = x.reshape(-1)
    return math.sqrt(float(xp.dot(flat, flat)) / x.size)
