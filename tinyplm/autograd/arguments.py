"""How what an op is called with finds its place."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import DtypeError
from ..types import Array


class Arguments:
    """The names of an op's inputs, which are positional, and of its options, which follow the star.

    Attributes:
        most: how many inputs there can be.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters.values()
        self.op = function.__name__.strip("_")
        self.inputs = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self._input_names = frozenset(self.inputs)
        self.options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.most = 1 << 30 if any_number else len(self.inputs)

    def arranged(self, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Inputs given by name move to their place, options given by place to their name."""
        if len(given) <= self.most and self._input_names.isdisjoint(named):
            return given, named
        extra = given[self.most :]
        if len(extra) > len(self.options):
            known = ", ".join(self.inputs + self.options)
            raise DtypeError(f"{self.op} takes at most ({known}), got {len(given)} arguments.")
        inputs = given[: self.most]
        for option, value in zip(self.options, extra, strict=False):
            self._once(option, option in named)
            named[option] = value
        for place, name in enumerate(self.inputs):
            if name in named:
                self._once(name, place < len(inputs))
                between = self.inputs[len(inputs) : place + 1]
                inputs = (*inputs, *(named.pop(n, None) for n in between))
        return inputs, named

    def _once(self, name: str, twice: bool) -> None:
        if twice:
            raise DtypeError(f"{self.op} got {name} twice: by place and by name.")


def array_of(op: str, numbers: list[Any] | tuple[Any, ...]) -> Array:
    """Nested lists of numbers as an array, which later changes of the lists do not reach."""
    if any(hasattr(item, "requires_grad") for item in numbers):
        raise DtypeError(
            f"{op} got a list of tensors where it takes a tensor; join them with ops.stack first."
        )
    return np.array(numbers)
