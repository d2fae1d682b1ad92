"""Gradient checking: is a pullback the derivative of its forward pass?

Backward gives a gradient; differences of function values give another, from the forward pass alone. In float64, with
a stencil of four points, the two agree to about ten digits when the pullback is right. Differences are taken with two
steps, or with three where the function bends sharply: at a kink they never settle, and the point is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import namespace
from ..errors import DtypeError, TinyplmError
from ..types import Array
from .engine import Tensor
from .messages import is_float
from .modes import no_grad

STEP = 1e-4
SMALLER = 8
"""Each further step is the one before over this."""
EACH = 48
"""Up to this many values are checked one by one; more are checked along random directions."""
DIRECTIONS = 4


class GradientError(TinyplmError, AssertionError):
    """A gradient that is not the derivative."""


class KinkError(TinyplmError, ArithmeticError):
    """A point at which the function has no derivative, such as a tie of max; choose another."""


@dataclass(frozen=True)
class GradientCheck:
    """What a check found.

    Attributes:
        error: the largest difference between gradient and derivative, relative to the derivative's size.
        derivatives: how many were compared.
    """

    error: float
    derivatives: int


def check_grad(
    function: Callable[..., Any],
    *inputs: Any,
    wrt: Sequence[Tensor] = (),
    tolerance: float = 1e-6,
    seed: int = 0,
) -> GradientCheck:
    """Compare the gradient of function with differences of its values.

    The result, or each of several, is first weighted with random numbers and added up. Up to 48 values are moved one
    by one; beyond that everything is moved along random directions. The derivative is taken with four points,
    (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h, whose error is of order h^4.

    Args:
        function: takes the inputs as tensors, returns a tensor or a tuple of them. It must give the same values when
            called again: with dropout, make the generator inside it.
        inputs: arrays, numbers or tensors. Floats become float64 and are checked; integers and booleans pass.
        wrt: float64 tensors that function uses from outside, parameters of a model for example; checked too.
        tolerance: largest relative error allowed.
        seed: of the weights and directions.

    Raises:
        GradientError: the gradient is wrong; the message says where and by how much.
        KinkError: the function has no derivative here, judged by its values alone.
    """
    rng = np.random.default_rng(seed)
    arguments = [_argument(x) for x in inputs]
    leaves = [x for x in arguments if isinstance(x, Tensor)] + list(wrt)
    for tensor in wrt:
        if tensor.dtype != np.float64 or not tensor.requires_grad:
            raise DtypeError(
                f"check_grad: a tensor of wrt is {tensor.dtype} with requires_grad={tensor.requires_grad}; it must be "
                "float64 and want a gradient."
            )
    weights: list[Array] = []
    sizes: list[float] = []

    def value() -> Any:
        result = function(*arguments)
        results = result if isinstance(result, tuple) else (result,)
        if not weights:
            weights.extend(rng.uniform(0.5, 1.5, r.shape) for r in results)
            parts = (r.numpy() * w for r, w in zip(results, weights, strict=True))
            sizes.append(float(sum((p * p).sum() for p in parts)) ** 0.5)
        total: Any = 0.0
        for r, w in zip(results, weights, strict=True):
            total = total + (r * namespace(r.array).asarray(w)).sum()
        return total

    before = [leaf.grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.grad = None
        total = value()
        if total.requires_grad:
            total.backward()
        gradient = [_numpy(leaf) for leaf in leaves]
    finally:
        for leaf, grad in zip(leaves, before, strict=True):
            leaf.grad = grad
    here = float(total.item())
    error, count = 0.0, 0
    with no_grad():
        size = sum(leaf.size for leaf in leaves)
        for directions in _directions(leaves, size, rng):
            claimed = _along(gradient, directions)
            spread = _along([g * g for g in gradient], [d * d for d in directions]) ** 0.5
            derivative, noise = _derivative(
                lambda: float(value().item()), leaves, directions, here, sizes[0]
            )
            # Below noise / tolerance a derivative drowns in rounding, and only that much can be asked.
            scale = max(abs(derivative), spread, noise / tolerance)
            off = abs(claimed - derivative) / scale if scale else 0.0
            error, count = max(error, off), count + 1
            if not off <= tolerance:
                raise GradientError(
                    f"gradient {claimed:.12g}, but the function changes by {derivative:.12g} per unit "
                    f"{_where(leaves, directions)}: relative error {off:.1e}, allowed {tolerance:.0e}."
                )
    return GradientCheck(error, count)


def _along(gradient: list[Array], directions: list[Array]) -> float:
    return float(sum((g * d)[d != 0].sum() for g, d in zip(gradient, directions, strict=True)))


def _argument(x: Any) -> Any:
    array = x.array if isinstance(x, Tensor) else x
    if isinstance(array, float):
        array = np.float64(array)
    if hasattr(array, "dtype") and is_float(array):
        return Tensor(array, requires_grad=True, dtype=np.float64)
    return x


def _numpy(leaf: Tensor) -> Array:
    if leaf.grad is None:
        return np.zeros(leaf.shape)
    if leaf.grad.shape != leaf.shape or leaf.grad.dtype != leaf.dtype:
        raise GradientError(
            f"the gradient of a {leaf.dtype} {leaf.shape} came as {leaf.grad.dtype} {leaf.grad.shape}."
        )
    return np.asarray(Tensor.wrap(leaf.grad).numpy())


def _directions(leaves: list[Tensor], size: int, rng: np.random.Generator) -> Iterator[list[Array]]:
    """Each value by itself where there are few, else a few random directions of length one."""
    if size > EACH:
        for _ in range(DIRECTIONS):
            drawn = [rng.standard_normal(leaf.shape) for leaf in leaves]
            length = sum(float((d * d).sum()) for d in drawn) ** 0.5
            yield [d / length for d in drawn]
        return
    for chosen, leaf in enumerate(leaves):
        for place in np.ndindex(leaf.shape):
            directions = [np.zeros(other.shape) for other in leaves]
            directions[chosen][place] = 1.0
            yield directions


def _derivative(
    value: Callable[[], float],
    leaves: list[Tensor],
    directions: list[Array],
    here: float,
    size: float,
) -> tuple[float, float]:
    """The derivative along the directions, and how far rounding may have moved it.

    here: the value at the point. size: of the terms that were added up to it, whose rounding it carries.
    """
    before = [leaf.numpy() for leaf in leaves]
    moved = np.concatenate([np.abs(b[d != 0]) for b, d in zip(before, directions, strict=True)])
    finite = moved[np.isfinite(moved)]
    reach = max(1.0, float(np.median(finite)) if finite.size else 1.0)
    step = STEP * reach
    eps = 16 * np.finfo(np.float64).eps

    def at(distance: float) -> float:
        for leaf, b, d in zip(leaves, before, directions, strict=True):
            leaf.write()[...] = namespace(leaf.array).asarray(b + distance * d)
        return value()

    def difference(h: float) -> tuple[float, float, float]:
        """The derivative by a step h, how much the slope changes over it, and what rounding may add.

        Rounding of the values counts, and that of the point itself where the slope is steep.
        """
        up, down, up2, down2 = at(h), at(-h), at(2 * h), at(-2 * h)
        bend = abs(up - 2 * here + down) / h
        rounding = eps * (max(map(abs, (here, up, down, size))) + reach * bend) / h
        return (8 * (up - down) - (up2 - down2)) / (12 * h), bend, rounding

    try:
        again = at(0.0)
        if not np.isfinite(again):
            raise KinkError(f"the function is {again} here; choose a point at which it is finite.")
        host = all(namespace(leaf.array) is np for leaf in leaves)
        # A device may add up in another order each time.
        if not abs(again - here) <= (0.0 if host else eps * max(abs(here), size)):
            raise GradientError(
                f"the function gave {here!r}, then {again!r} for the same inputs; if it draws, make its generator "
                "inside it."
            )
        estimate, bend, rounding = difference(step)
        for smaller in (step / SMALLER, step / SMALLER**2):
            finer, finer_bend, finer_rounding = difference(smaller)
            apart, tiny = abs(finer - estimate), 1e-5 * max(abs(finer), abs(estimate))
            if apart <= max(10 * tiny, finer_rounding) and finer_bend <= max(
                0.5 * bend, tiny, finer_rounding
            ):
                settled = apart <= max(1e-3 * tiny, rounding)  # then the larger step rounds less
                return (estimate, rounding) if settled else (finer, finer_rounding)
            estimate, bend, rounding = finer, finer_bend, finer_rounding
    finally:
        for leaf, b in zip(leaves, before, strict=True):
            leaf.write()[...] = namespace(leaf.array).asarray(b)
    raise KinkError(
        f"the function has no derivative here: its slope still jumps by {bend:.3g} over a step of {smaller:.0e}. "
        "Choose a point away from kinks and ties."
    )


def _where(leaves: list[Tensor], directions: list[Array]) -> str:
    places = [(i, np.argwhere(d != 0)) for i, d in enumerate(directions)]
    if sum(len(p) for _, p in places) == 1:
        ((i, place),) = [(i, p[0].tolist()) for i, p in places if len(p)]
        return f"at {place} of input {i}, of shape {leaves[i].shape}"
    return f"along a random direction of inputs of shapes {[leaf.shape for leaf in leaves]}"
