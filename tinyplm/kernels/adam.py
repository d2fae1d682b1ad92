"""One Adam update, in place, of one parameter or of all."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import is_array, namespace
from ..types import Array
from . import cuda
from .compiled import array_at, is_float, parallel
from .many import are_whole, locate, row_of, table_of
from .pieces import KINDS, Pieces
from .registry import Kernel
from .threads import LEAST

NUMBERS = ("decay", "beta_1", "beta_2", "rest_1", "rest_2", "step_size", "root", "eps")
"""What an update wants to know beside the gradient and its factor, in this order."""


@Kernel
def adamw_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    shrink: Any,
    decay: Any,
    beta_1: Any,
    beta_2: Any,
    rest_1: Any,
    rest_2: Any,
    step_size: Any,
    root: Any,
    eps: Any,
) -> None:
    """Update p and its moments m and v from the gradient g.

    g is multiplied by shrink and p by decay first; then m = b1 m + r1 g, v = b2 v + r2 g^2, where r1 = 1 - b1 and
    r2 = 1 - b2, and p -= step_size m / (root sqrt(v) + eps). Each number may be an array with one value.
    """
    xp, kind = namespace(p), m.dtype.type
    decays = is_array(decay) or decay != 1
    numbers = shrink, decay, beta_1, beta_2, rest_1, rest_2, step_size, root, eps
    shrink, decay, beta_1, beta_2, rest_1, rest_2, step_size, root, eps = (
        number if is_array(number) else kind(number) for number in numbers
    )
    g = g * shrink
    m *= beta_1
    v *= beta_2
    m += g * rest_1
    np.multiply(g, g, out=g) if xp is np else xp.multiply(g, g, out=g)
    g *= rest_2
    v += g
    xp.sqrt(v, out=g)
    g *= root
    g += eps
    xp.divide(m, g, out=g)
    g *= step_size
    if decays:
        p *= decay
    p -= g


class Updates:
    """The same update of many parameters in one compiled loop, made once and used at every step.

    Args:
        p: parameters; with m and v they are kept, and must stay where they are.
        m: mean gradients.
        v: mean squared gradients.
        decays: which of the parameters decay.
        copies: arrays in half precision that get the values of p too, None for parameters that have none.
    """

    def __init__(
        self,
        p: Sequence[Array],
        m: Sequence[Array],
        v: Sequence[Array],
        decays: Sequence[bool],
        copies: Sequence[Array | None],
    ) -> None:
        self.p, self.m, self.v = list(p), list(m), list(v)
        self.decays, self.copies = list(decays), list(copies)
        self._run = None
        if self.p and are_whole(self.p[0].dtype, (*p, *m, *v)):
            self._run = _compiled()
        if self._run is not None:
            self._like = np.empty(0, self.p[0].dtype)
            self._table = table_of([a.size for a in self.p], 4)
            for column, arrays in ((1, p), (3, m), (4, v)):
                locate(self._table, column, arrays)

    def __call__(self, g: Sequence[Array], numbers: Sequence[float], shrink: float = 1.0) -> None:
        """As adamw_update for each parameter, with its gradient."""
        g = [a if a.dtype == p.dtype else a.astype(p.dtype) for a, p in zip(g, self.p, strict=True)]
        decay = [numbers[0] if decays else 1.0 for decays in self.decays]
        if self._run is None or not are_whole(self._like.dtype, g):
            for one, own in zip(zip(self.p, g, self.m, self.v, strict=True), decay, strict=True):
                if one[0].ndim == 0:  # in NumPy, arithmetic on an array without axes gives no array
                    one = tuple(a.reshape(1) for a in one)  # type: ignore[assignment]
                adamw_update(*one, shrink, own, *numbers[1:])
        else:
            locate(self._table, 2, g)
            kind = self._like.dtype
            self._run(
                int(self._table[-1, 0]), self._table, np.array(decay, kind),
                np.array((shrink, *numbers[1:]), kind), least=LEAST,
            )  # fmt: skip
        for p, copy in zip(self.p, self.copies, strict=True):
            if copy is not None:
                copy[...] = p


class UpdatesOnDevice:
    """The same in one launch: parameters and moments are float32, gradients and copies may be halves."""

    def __init__(
        self,
        p: Sequence[Array],
        m: Sequence[Array],
        v: Sequence[Array],
        decays: Sequence[bool],
        copies: Sequence[Array | None],
    ) -> None:
        self.p, self.m, self.v = list(p), list(m), list(v)
        columns = [
            (*map(cuda.address, arrays), *_place(copy), int(own))
            for *arrays, copy, own in zip(p, m, v, copies, decays, strict=True)
        ]
        self.copies = list(copies)  # which keeps them where they are
        self._pieces = Pieces(p[0], [a.size for a in p], columns)

    def __call__(self, g: Sequence[Array], numbers: Any, shrink: Any = 1.0) -> None:
        """As adamw_update for each parameter; nothing where shrink is 0.

        Numbers and shrink are arrays on the device, or numbers, which are sent there together.
        """
        if not is_array(numbers) and not is_array(shrink):
            both = namespace(self.p[0]).asarray(np.array((*numbers, shrink), np.float32))
            numbers, shrink = both[:-1], both[-1:]
        there = [_as_float32(self.p[0], a) for a in (numbers, shrink)]
        self._pieces.launch("adamw_update_many", list(cuda.whole(*g)), *there)


def are_same(p: Sequence[Array], q: Sequence[Array]) -> bool:
    """Whether these are the very arrays: updates are made for some, and know no others."""
    return len(p) == len(q) and all(map(operator.is_, p, q))


def updates_of(
    p: Sequence[Array],
    m: Sequence[Array],
    v: Sequence[Array],
    decays: Sequence[bool],
    copies: Sequence[Array | None],
) -> Updates | UpdatesOnDevice | None:
    """The updates that fit where these arrays lie; None on a device without a kernel for them."""
    if not p or namespace(p[0]) is np:
        return Updates(p, m, v, decays, copies)
    if cuda.usable() and all(map(fits_device, p, m, v)):
        return UpdatesOnDevice(p, m, v, decays, copies)
    return None


def _place(copy: Array | None) -> tuple[int, int]:
    return (0, 0) if copy is None else (cuda.address(copy), KINDS[copy.dtype.name])


def _as_float32(like: Array, numbers: Any) -> Any:
    if is_array(numbers):
        return numbers if numbers.dtype == np.float32 else numbers.astype(np.float32)
    return namespace(like).asarray(np.array(numbers, np.float32).reshape(-1))


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

    def update(p: Array, g: Array, m: Array, v: Array, shrink: float, *numbers: float) -> None:
        Updates([p], [m], [v], [True], [None])([g], numbers, shrink)

    return update


def fits_device(p: Array, *moments: Array) -> bool:
    """Whether the device's kernel takes a parameter and its moments."""
    return p.dtype.name == "float32" and cuda.takes(p, *moments)


@adamw_update.variant(
    "cuda",
    library="cupy",
    when=lambda p, g, m, v, *_: fits_device(p, m, v) and cuda.takes(g),
)
def _cuda() -> Any:
    """One pass, four values at a time; gradients may be stored in 16 bits."""

    def update(p: Array, g: Array, m: Array, v: Array, shrink: Any, *numbers: Any) -> None:
        UpdatesOnDevice([p], [m], [v], [True], [None])([g], numbers, shrink)

    return update if cuda.usable() else None
