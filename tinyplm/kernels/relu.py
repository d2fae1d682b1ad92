"""What is positive, and the gradient where it was."""

import functools
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import is_float, parallel
from .registry import Kernel
from .threads import LEAST


@Kernel
def relu_forward(x: Array) -> Array:
    """X where positive, else 0; NaN stays NaN."""
    return namespace(x).maximum(x, x.dtype.type(0))


@Kernel
def relu_pullback(g: Array, y: Array) -> Array:
    """The gradient where the result is positive, else 0."""
    return namespace(g).where(y > 0, g, g.dtype.type(0))


def _forward_part(team: Any, part: int, start: int, stop: int, x: Array, y: Array) -> None:
    zero = x.dtype.type(0)
    x, y = x[start:stop], y[start:stop]  # from 0: LLVM knows then that no index is negative
    for i in range(x.size):
        y[i] = zero if x[i] <= zero else x[i]


def _pullback_part(
    team: Any, part: int, start: int, stop: int, g: Array, y: Array, out: Array
) -> None:
    zero = g.dtype.type(0)
    g, y, out = g[start:stop], y[start:stop], out[start:stop]
    for i in range(g.size):
        out[i] = g[i] if y[i] > zero else zero


def _variant(kernel: Kernel, body: Any) -> None:
    @kernel.variant("numba", library="numpy", when=is_float)
    def _build() -> Any:
        """One pass, shared between threads."""
        run = parallel(body)
        if run is None:
            return None

        def compute(*arrays: Array) -> Array:
            out = np.empty_like(arrays[0])
            run(out.size, *(a.reshape(-1) for a in (*arrays, out)), least=LEAST)
            return out

        return compute


_variant(relu_forward, _forward_part)
_variant(relu_pullback, _pullback_part)


def _cuda(name: str) -> Any:
    """Groups of 16 bytes, one for each thread."""

    def compute(*arrays: Array) -> Array:
        y = cuda.empty(arrays[0], arrays[0].shape)
        cuda.each_value("relu", f"{name}_{y.dtype.name}", (*cuda.whole(*arrays), y))
        return y

    return compute if cuda.usable() else None


for _kernel in (relu_forward, relu_pullback):
    _kernel.variant("cuda", library="cupy", when=cuda.known)(functools.partial(_cuda, _kernel.name))
