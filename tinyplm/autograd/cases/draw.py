"""Where cases come from: a few primitives that are drawn, and the shapes and arrays made of them.

The primitives come from NumPy's generator here, and from hypothesis in the tests, whose failures shrink.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from ...types import Array

T = TypeVar("T")
Shape = tuple[int, ...]


class Draw(ABC):
    """Draws shapes, arrays and choices out of two primitives, `integer` and `values`."""

    @abstractmethod
    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""

    @abstractmethod
    def values(self, low: float, high: float, count: int) -> Array:
        """That many float64 between low and high."""

    def boolean(self) -> bool:
        """True or false."""
        return bool(self.integer(0, 1))

    def rarely(self, one_in: int = 6) -> bool:
        """True once in so many draws."""
        return self.integer(0, one_in - 1) == one_in - 1

    def choice(self, options: Sequence[T]) -> T:
        """One of the options, the first being the plainest."""
        return options[self.integer(0, len(options) - 1)]

    def shape(self, least: int = 0, most: int = 3, *, side: int = 5, empty: bool = True) -> Shape:
        """A shape of `least` to `most` axes, each of length 1 to `side`; rarely one of them is empty."""
        shape = [self.integer(1, side) for _ in range(self.integer(least, most))]
        if shape and empty and self.rarely(12):
            shape[self.integer(0, len(shape) - 1)] = 0
        return tuple(shape)

    def broadcastable(self, shape: Shape) -> Shape:
        """A shape that broadcasts to the given one: leading axes dropped, others of length one."""
        start = self.integer(0, len(shape)) if self.boolean() else 0
        return tuple(1 if self.rarely(4) else n for n in shape[start:])

    def array(
        self, shape: Shape, low: float = -2.0, high: float = 2.0, *, away: float = 0.0
    ) -> Array:
        """Values between low and high in an arrangement that is drawn too: strides may be anything.

        away: values are moved from 0 by this much, to stay clear of a kink or a pole there.
        """
        count = int(np.prod(shape, dtype=int))
        x = self.values(low, high, count).reshape(shape)
        if away:
            x = np.asarray(x + np.where(x < 0, -away, away))
        return self.arranged(x)

    def arranged(self, x: Array) -> Array:
        """The same values in other strides, or, rarely, the first along an axis for all: a broadcast view."""
        kind = self.integer(0, 5) if x.ndim else 0
        axis = self.integer(0, x.ndim - 1) if kind > 2 else 0
        if kind == 2:
            return np.asfortranarray(x)
        if kind == 3:  # every second one of a larger array, with NaN between them
            wide = np.full((*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :]), np.nan)
            if x.dtype.kind in "iub":
                wide = np.zeros(wide.shape, x.dtype)
            key = (*(slice(None) for _ in range(axis)), slice(None, None, 2))
            wide[key] = x
            return wide[key]
        if kind == 4:
            return np.flip(np.flip(x, axis).copy(), axis)
        if kind == 5 and x.shape[axis] > 1:
            return np.broadcast_to(x.take([0], axis), x.shape)
        return x

    def whole(self, shape: Shape, low: int, high: int) -> Array:
        """Whole numbers from low to high, both included, in any arrangement."""
        count = int(np.prod(shape, dtype=int))
        x = np.array([self.integer(low, high) for _ in range(count)], dtype=np.int64)
        return self.arranged(x.reshape(shape))

    def booleans(self, shape: Shape) -> Array:
        """True and false in any arrangement."""
        return self.arranged(self.whole(shape, 0, 1).astype(bool))

    def axis(self, dims: int) -> int:
        """One of so many axes, counted from either end."""
        return self.integer(-dims, dims - 1)

    def axes(self, dims: int) -> int | tuple[int, ...] | None:
        """All axes, one of them, or some."""
        kind = self.integer(0, 2)
        if kind == 0 or dims == 0:
            return None
        if kind == 1:
            return self.axis(dims)
        return tuple(i - dims * self.integer(0, 1) for i in range(dims) if self.boolean())

    def order(self, dims: int) -> tuple[int, ...]:
        """The axes in some order."""
        left = list(range(dims))
        return tuple(left.pop(self.integer(0, len(left) - 1)) for _ in range(dims))


class NumpyDraw(Draw):
    """Draws from NumPy's generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def values(self, low: float, high: float, count: int) -> Array:
        """That many float64 between low and high."""
        return self.rng.uniform(low, high, count)

    def whole(self, shape: Shape, low: int, high: int) -> Array:
        """Whole numbers from low to high, both included, in any arrangement."""
        return self.arranged(self.rng.integers(low, high + 1, size=shape))


def count(shape: Sequence[Any]) -> int:
    """How many values an array of this shape has."""
    return int(np.prod(shape, dtype=int))
