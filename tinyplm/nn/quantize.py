"""A model with its large matrices in fewer bits, for writing text and for reading it.

Quantised are the matrices of linear layers and heads, and an embedding that is a head's weight too. Activations, norms,
biases, positions and all arithmetic stay float32.
"""

import copy
from typing import Any, TypeVar

import numpy as np

from ..autograd import Tensor
from ..backend import namespace
from ..errors import ConfigError
from .head import Head
from .linear import Linear
from .module import Module
from .quantized import KINDS, Quantized

M = TypeVar("M", bound=Module)


def quantize(model: M, kind: str = "int8") -> M:
    """A copy of a model whose large matrices are kept in fewer bits; the model itself stays as it is.

    With "int8" a weight is off by at most half a step of its row's scale, with "bfloat16" by 2^-8 of itself. The copy
    generates and is evaluated; training and saving it is refused.

    Raises:
        ConfigError: no such kind, a model that is quantised already, or one that is not in the CPU's memory.
        NonFiniteError: a weight is NaN or infinite.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"Weights cannot be quantised to '{kind}'. Known: {', '.join(KINDS)}. int8 is the smallest and fastest, "
            "bfloat16 is nearer to float32."
        )
    made: dict[int, Any] = {}

    def small(weight: Any, turned: bool) -> Quantized:
        if isinstance(weight, Quantized):
            raise ConfigError(
                f"The weights of this model are {weight.kind} already. Quantise the model that it was made from."
            )
        if namespace(weight.array) is not np:
            raise ConfigError(
                "Quantised weights are for the CPU, and this model is on a GPU. Load it with device='cpu' first."
            )
        if id(weight) not in made:
            made[id(weight)] = Quantized(weight.array.T if turned else weight.array, kind)
        return made[id(weight)]

    def prepare(thing: Any) -> None:
        """Quantise first, so that an embedding finds what its head has made of the weight that they share."""
        if isinstance(thing, Linear | Head):
            small(thing.weight, isinstance(thing, Linear))
        for part in vars(thing).values() if isinstance(thing, Module) else thing:
            if isinstance(part, Module | list):
                prepare(part)

    def copied(thing: Any) -> Any:
        if isinstance(thing, list):
            return [copied(part) for part in thing]
        if not isinstance(thing, Module | Tensor):
            return thing
        if id(thing) not in made:
            if isinstance(thing, Tensor):
                made[id(thing)] = Tensor(thing.array, dtype=np.float32)
            else:
                made[id(thing)] = new = copy.copy(thing)
                for name, value in vars(thing).items():
                    setattr(new, name, copied(value))
        return made[id(thing)]

    prepare(model)
    return copied(model)
