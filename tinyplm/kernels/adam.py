"""One Adam update, in place, of one parameter or of all."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import array_at, is_float, parallel
from .many import are_whole, locate, row_of, table_of
from .registry import Kernel
from .threads import LEAST


@Kernel
def adamw_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    shrink: float,
    decay: float,
    beta_1: float,
    beta_2: float,
    step_size: float,
    root_correction: float,
    eps: float,
) -> None:
    """Update p and its moments m and v from the gradient g.

    g is multiplied by shrink and p by decay first; then m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2 and
    p -= step_size m / (sqrt(v) / root_correction + eps).
    """
    xp = namespace(p)
    kind = m.dtype.type
    g = g * kind(shrink)
    m *= kind(beta_1)
    v *= kind(beta_2)
    m += g * kind(1 - beta_1)
    np.multiply(g, g, out=g) if xp is np else xp.multiply(g, g, out=g)
    g *= kind(1 - beta_2)
    v += g
    xp.sqrt(v, out=g)
    g *= kind(1 / root_correction)
    g += kind(eps)
    xp.divide(m, g, out=g)
    g *= kind(step_size)
    if decay != 1:
        p *= kind(decay)
    p -= g


class Updates:
    """The same update of many parameters in one compiled loop, made once and used at every step.

    Args:
        p: parameters; with m and v they are kept, and must stay where they are.
        m: mean gradients.
        v: mean squared gradients.
    """

    def __init__(self, p: Sequence[Array], m: Sequence[Array], v: Sequence[Array]) -> None:
        self.p, self.m, self.v = list(p), list(m), list(v)
        self._run = None
        if self.p and are_whole(self.p[0].dtype, (*p, *m, *v)):
            self._run = _compiled()
        if self._run is not None:
            self._like = np.empty(0, self.p[0].dtype)
            self._table = table_of([a.size for a in self.p], 4)
            for column, arrays in ((1, p), (3, m), (4, v)):
                locate(self._table, column, arrays)

    def are_of(self, p: Sequence[Array]) -> bool:
        """Whether these are the parameters that this was made for."""
        return len(p) == len(self.p) and all(map(operator.is_, p, self.p))

    def __call__(
        self,
        g: Sequence[Array],
        decay: Sequence[float],
        shrink: float,
        beta_1: float,
        beta_2: float,
        step_size: float,
        root_correction: float,
        eps: float,
    ) -> None:
        """As adamw_update for each parameter, with its gradient and decay."""
        numbers = shrink, beta_1, beta_2, step_size, root_correction, eps
        if self._run is None or not are_whole(self._like.dtype, g):
            for row in zip(self.p, g, self.m, self.v, decay, strict=True):
                one, rest = row[:4], row[4]
                if one[0].ndim == 0:  # in NumPy, arithmetic on an array without axes gives no array
                    one = tuple(a.reshape(1) for a in one)  # type: ignore[assignment]
                adamw_update(*one, shrink, rest, *numbers[1:])
            return
        locate(self._table, 2, g)
        kind = self._like.dtype
        self._run(
            int(self._table[-1, 0]), self._table, np.array(decay, kind),
            np.array((*numbers[:3], 1 - beta_1, 1 - beta_2, step_size, 1 / root_correction, eps), kind),
            least=LEAST,
        )  # fmt: skip


def _loop(p: Array, g: Array, m: Array, v: Array, decay: Any, numbers: Array) -> None:
    shrink, b_1, b_2, rest_1, rest_2, step_size, root, eps = (
        *(numbers[0], numbers[1], numbers[2], numbers[3]),
        *(numbers[4], numbers[5], numbers[6], numbers[7]),
    )
    kind = p.dtype.type
    for i in range(p.size):
        s = g[i] * shrink
        mean = b_1 * m[i] + rest_1 * s
        square = b_2 * v[i] + rest_2 * s * s
        m[i] = mean
        v[i] = square
        p[i] = p[i] * decay - step_size * mean / (kind(math.sqrt(square)) * root + eps)


def _part(
    team: Any, part: int, start: int, stop: int, table: Array, decay: Array, numbers: Array
) -> None:
    row = row_of(table, start)
    while start < stop:
        end = min(stop, table[row + 1, 0])
        if end > start:
            skip, size = (start - table[row, 0]) * numbers.itemsize, end - start
            _loop(
                array_at(table[row, 1] + skip, size, numbers),
                array_at(table[row, 2] + skip, size, numbers),
                array_at(table[row, 3] + skip, size, numbers),
                array_at(table[row, 4] + skip, size, numbers),
                decay[row],
                numbers,
            )
            start = end
        row += 1


@functools.cache
def _compiled() -> Any:
    return parallel(_part, _loop, row_of)


@adamw_update.variant("numba", library="numpy", when=lambda p, g, m, v, *_: is_float(p, g, m, v))
def _numba() -> Any:
    """One pass over parameter, gradient and moments instead of a dozen."""
    if _compiled() is None:
        return None

    def update(
        p: Array, g: Array, m: Array, v: Array, shrink: float, decay: float, *numbers: float
    ) -> None:
        Updates([p], [m], [v])([g], [decay], shrink, *numbers)

    return update


@adamw_update.variant(
    "cuda",
    library="cupy",
    when=lambda p, g, m, v, *_: p.dtype.name == "float32" and cuda.takes(p, m, v) and cuda.takes(g),
)
def _cuda() -> Any:
    """One pass, of four values for each thread; gradients may be stored in 16 bits."""

    def update(
        p: Array,
        g: Array,
        m: Array,
        v: Array,
        shrink: float,
        decay: float,
        beta_1: float,
        beta_2: float,
        step_size: float,
        root_correction: float,
        eps: float,
    ) -> None:
        numbers = shrink, decay, beta_1, beta_2, 1 - beta_1, 1 - beta_2, step_size
        cuda.each_value(
            "adam", f"adamw_update_{g.dtype.name}", (p, g, m, v),
            *map(float, (*numbers, 1 / root_correction, eps)), group=4,
        )  # fmt: skip

    return update if cuda.usable() else None
