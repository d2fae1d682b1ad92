"""What a case is: how to draw inputs of an op, what it should give, and what its pullback may keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...types import Array
from .draw import Draw

CASES: dict[str, "Case"] = {}
"""The case of every op, by its name in `tinyplm.autograd.OPS`."""


@dataclass(frozen=True)
class Seed:
    """Stands among attributes for a generator, which is made anew for every call."""

    number: int


@dataclass(frozen=True)
class Sample:
    """One drawn use of an op.

    Attributes:
        inputs: positional arguments: float64 arrays, integers, booleans, Python numbers, None.
        attributes: keyword arguments.
    """

    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """The attributes, each `Seed` as a new generator."""
        return {
            k: np.random.default_rng(v.number) if isinstance(v, Seed) else v
            for k, v in self.attributes.items()
        }

    def astype(self, dtype: Any) -> "Sample":
        """The same with float arrays of another dtype, in the same arrangement."""
        return self.map(lambda x: x.astype(dtype, order="K") if is_float_array(x) else x)

    def contiguous(self) -> "Sample":
        """The same with every array in plain row-major order and of its own."""
        attributes = {k: _copied(v) for k, v in self.attributes.items()}
        return Sample(tuple(map(_copied, self.inputs)), attributes)

    def map(self, change: Callable[[Any], Any]) -> "Sample":
        """The same with each input changed."""
        return Sample(tuple(map(change, self.inputs)), self.attributes)

    def __str__(self) -> str:
        shapes = [
            f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else repr(x) for x in self.inputs
        ]
        return f"({', '.join([*shapes, *(f'{k}={v!r}' for k, v in self.attributes.items())])})"


@dataclass(frozen=True)
class Hard:
    """A hard input, with the result and the gradients that the op's documentation promises for it.

    Attributes:
        says: the promise, as a sentence.
        inputs: positional arguments.
        value: the result, or a tuple of results.
        gradients: of the inputs, for a gradient of ones, or of `incoming`; None where an input has none.
        attributes: keyword arguments.
        incoming: the gradient of the result.
    """

    says: str
    inputs: tuple[Any, ...]
    value: Any
    gradients: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    incoming: Any = None


@dataclass(frozen=True)
class Case:
    """How an op is tested.

    Attributes:
        draw: draws a sample.
        oracle: the value, from the same arguments, computed otherwise than the op does.
        keeps: bytes of the arrays that the pullback keeps, given a sample of contiguous float64 inputs.
        hard: inputs at which something could go wrong.
    """

    draw: Callable[[Draw], Sample]
    oracle: Callable[..., Any]
    keeps: Callable[[Sample], int]
    hard: tuple[Hard, ...] = ()


def case(
    name: str,
    draw: Callable[[Draw], Sample],
    oracle: Callable[..., Any],
    keeps: Callable[[Sample], int],
    *hard: Hard,
) -> None:
    """Register the case of an op."""
    CASES[name] = Case(draw, oracle, keeps, hard)


def _copied(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(_copied, x))
    return x.copy(order="C") if isinstance(x, np.ndarray) else x


def is_float_array(x: Any) -> bool:
    """Whether x is an array of floats."""
    return isinstance(x, np.ndarray) and x.dtype.kind not in "iub"


def each(function: Callable[..., float]) -> Callable[..., Array]:
    """An oracle that applies a function of Python numbers to each place of broadcast operands."""

    def oracle(*operands: Any) -> Array:
        arrays = np.broadcast_arrays(*operands)
        numbers = zip(*(a.ravel().tolist() for a in arrays), strict=True)
        return np.array([function(*n) for n in numbers], float).reshape(arrays[0].shape)

    return oracle


def nothing(_: Sample) -> int:
    """Of an op whose pullback keeps no array."""
    return 0


def kept(*places: int) -> Callable[[Sample], int]:
    """Of an op whose pullback keeps the inputs at these places, or something of their size."""
    return lambda s: sum(getattr(s.inputs[i], "nbytes", 0) for i in places)
