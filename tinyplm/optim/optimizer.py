"""What update rules have in common: memory for each parameter, float32 values behind halves, and what is saved.

A parameter in half precision cannot take small steps: 1 + 2^-9 is 1 there. So it has a *master*, the same values in
float32, which is what is updated and saved; the parameter is the master rounded. Memory of half parameters is float32
too, and gradients may be either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..autograd.messages import is_half
from ..backend import is_array, namespace
from ..types import Array

MASTER = "master."
"""What names of masters begin with, among the arrays that are saved."""


class Optimizer:
    """An update rule for named parameters; one without a gradient is left alone. To be subclassed.

    A step is `apply(advance(learning_rate))`: the numbers of a step depend on its place alone, so they are known before
    there are gradients. On a device numbers and the factor of clipping are arrays, and a factor of 0 leaves everything
    as it was.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self.steps = 0
        self._memory = {
            name: {
                kind: namespace(p.array).zeros(shape, _wide(p.dtype))
                for kind, shape in self.memory(p).items()
            }
            for name, p in self.parameters.items()
        }
        self._masters: dict[
            str, tuple[Array, Array]
        ] = {}  # with the parameter's array it is behind

    def memory(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        """What is kept of a parameter from step to step: names and shapes."""
        raise NotImplementedError

    def advance(self, learning_rate: float) -> tuple[float, ...]:
        """Count a step, and say the numbers that it is made with."""
        raise NotImplementedError

    def update(
        self, p: Array, g: Array, memory: Sequence[Array], numbers: Any, shrink: Any
    ) -> None:
        """Change one parameter, of at least float32, and its memory in place, from a gradient of its dtype."""
        raise NotImplementedError

    def step(self, learning_rate: float, *, shrink: float = 1.0) -> None:
        """Update every parameter from its gradient, multiplied by shrink (for clipping)."""
        self.apply(self.advance(learning_rate), shrink)

    def apply(self, numbers: Any, shrink: Any = 1.0) -> None:
        """Update every parameter from its gradient, with the numbers of `advance`."""
        for name, p in self.parameters.items():
            if p.grad is None or not p.size:
                continue
            values, copy = self.values_behind(name, p)
            g = p.grad if p.grad.dtype == values.dtype else p.grad.astype(values.dtype)
            changed = [values, *self._memory[name].values()]
            tried = [a.copy() for a in changed] if is_array(shrink) else changed
            self.update(tried[0], g, tried[1:], numbers, shrink[0] if is_array(shrink) else shrink)
            if tried is not changed:
                for a, new in zip(changed, tried, strict=True):
                    a[...] = namespace(a).where(shrink[0] != 0, new, a)
            if copy is not None:
                copy[...] = values.astype(copy.dtype)

    def values_behind(self, name: str, p: Tensor) -> tuple[Array, Array | None]:
        """What is updated, to be written now: the parameter's own array, or its master with that array."""
        own = p.write()
        if not is_half(own.dtype):
            return own, None
        master, behind = self._masters.get(name, (own, None))
        if behind is not own:  # the first step, or the parameter has been given other values
            master = own.astype(np.float32)
            self._masters[name] = master, own
        return master, own

    def values(self) -> dict[str, Array]:
        """Every parameter in full precision, to be read: its master where it has one."""
        return {name: p.array for name, p in self.parameters.items()} | {
            name: master for name, (master, _) in self._masters.items()
        }

    def rewind(self, steps: int) -> None:
        """Forget that the last steps were counted: they were left out."""
        self.steps -= steps

    def arrays(self) -> dict[str, Array]:
        """Memory and masters of every parameter, to be saved."""
        kept = {
            f"{kind}.{name}" if kind else name: array
            for name, memory in self._memory.items()
            for kind, array in memory.items()
        }
        return kept | {MASTER + name: master for name, (master, _) in self._masters.items()}

    def state(self) -> dict[str, Any]:
        """What else must be saved."""
        return {"steps": self.steps}

    def restore(self, arrays: Mapping[str, Array], state: Mapping[str, Any]) -> None:
        """Go on from what arrays() and state() returned; half parameters take the values of their masters."""
        self.steps = int(state.get("steps", 0))
        for name, p in self.parameters.items():
            if is_half(p.dtype) and MASTER + name in arrays:
                master, own = self.values_behind(name, p)
                master[...] = namespace(master).asarray(arrays[MASTER + name])
                own[...] = master.astype(own.dtype)  # type: ignore[index, union-attr]
        kept = self.arrays()
        for name, array in kept.items():
            if not name.startswith(MASTER):
                array[...] = namespace(array).asarray(arrays[name])


def masters(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The parameters that have masters among what an optimizer saved, in float32."""
    return {
        name.removeprefix(MASTER): array
        for name, array in arrays.items()
        if name.startswith(MASTER)
    }


def as_kind(number: Any, like: Array) -> Any:
    """A number as the array's dtype has it; one that lies on a device stays there."""
    return number if is_array(number) else like.dtype.type(number)


def _wide(dtype: Any) -> Any:
    return np.dtype(np.float32) if is_half(dtype) else dtype
