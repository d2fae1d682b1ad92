"""Checks every op over its drawn cases: values against an oracle, gradients against differences of values."""

import difflib
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import library, to_numpy
from ..errors import ConfigError
from ..types import Array
from .cases import CASES, NumpyDraw, Sample
from .cases.case import is_float_array
from .check import GradientCheck, GradientError, KinkError, check_grad
from .engine import OPS

VALUE_TOLERANCE = 1e-12
"""Of a value against its oracle, in float64, relative to the largest number around."""
REDRAWS = 10
"""How many kinks may be met for each case that is checked before an op is given up."""


class ValueMismatchError(GradientError):
    """A result that is not the oracle's."""


@dataclass(frozen=True)
class Record:
    """What the check of one op found.

    Attributes:
        op: its name.
        cases: how many were checked.
        redrawn: how many more were drawn but had no derivative.
        derivatives: how many were compared over all cases.
        gradient_error: the largest relative error of a gradient.
        value_error: the largest relative error of a result.
        seconds: the time taken.
        failure: why the check stopped, with the case; None when all agreed.
    """

    op: str
    cases: int
    redrawn: int
    derivatives: int
    gradient_error: float
    value_error: float
    seconds: float
    failure: str | None


def run(
    ops: Iterable[str] | None = None, *, cases: int = 100, seed: int = 0, device: str = "cpu"
) -> Iterator[Record]:
    """Check ops over cases drawn at random, one record per op as it is done.

    Args:
        ops: names; all when None.
        cases: how many to check of each.
        seed: of the drawing; each op draws the same whichever others are checked, and on every device.
        device: where ops compute, "cpu" or "cuda". In float64 that is what the definitions say, and no kernel.

    Raises:
        ConfigError: there is no op of that name.
        MissingExtraError: device is "cuda" and CuPy or a driver is missing.
    """
    library(device)  # refuses a device that is not there
    names = sorted(CASES) if ops is None else list(ops)
    for name in names:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=3) or sorted(CASES)
            raise ConfigError(f"There is no op {name!r}. Did you mean {', '.join(near)}?")
    if cases < 1:
        raise ConfigError(f"cases is {cases}, but at least one is needed.")
    return (_check(name, cases, seed, device) for name in names)


def _check(name: str, cases: int, seed: int, device: str) -> Record:
    draw = NumpyDraw(np.random.default_rng([seed, zlib.crc32(name.encode())]))
    done = redrawn = derivatives = 0
    gradient_error = value_error = 0.0
    failure = None
    start = time.perf_counter()
    while done < cases and failure is None:
        sample = CASES[name].draw(draw)
        try:
            value_error = max(value_error, check_value(name, sample, device))
            found = check_gradient(name, sample, device)
        except KinkError as kink:
            redrawn += 1
            if redrawn > REDRAWS * cases:
                failure = (
                    f"{redrawn} of {redrawn + done} cases have no derivative; the last: {kink}"
                )
            continue
        except Exception as error:  # whatever goes wrong, the other ops shall be checked too
            failure = f"{name}{sample}: {type(error).__name__}: {error}"
            continue
        done += 1
        derivatives += found.derivatives
        gradient_error = max(gradient_error, found.error)
    seconds = time.perf_counter() - start
    return Record(name, done, redrawn, derivatives, gradient_error, value_error, seconds, failure)


def placed(x: Any, device: str) -> Any:
    """An array on a device, in the strides that it has here; within tuples and lists too, and all else as it is."""
    if isinstance(x, tuple | list):
        return type(x)(placed(each, device) for each in x)
    if device == "cpu" or not isinstance(x, np.ndarray):
        return x
    xp, owner = library(device), x
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if not owner.size or x.flags.c_contiguous:
        return xp.asarray(x)
    whole = xp.asarray(owner.ravel("K"))  # all that the strides may reach
    start = whole.data + (x.ctypes.data - owner.ctypes.data)
    return xp.ndarray(x.shape, x.dtype, memptr=start, strides=x.strides)


def check_value(name: str, sample: Sample, device: str = "cpu") -> float:
    """The relative error of an op's result against the oracle of its case.

    Raises:
        ValueMismatchError: it is too large, or shapes or dtypes differ.
    """
    inputs, keywords = placed(sample.inputs, device), sample.keywords()
    result, _ = OPS[name].on_arrays(*inputs, **{k: placed(v, device) for k, v in keywords.items()})
    expected = CASES[name].oracle(*sample.inputs, **sample.keywords())
    around = max(
        (
            float(np.abs(x[np.isfinite(x)]).max(initial=0))
            for x in sample.inputs
            if is_float_array(x)
        ),
        default=0.0,
    )
    pairs = list(zip(_tuple(result), _tuple(expected), strict=True))
    return max(compare(np.asarray(to_numpy(y)), np.asarray(e), around) for y, e in pairs)


def compare(
    y: Array, expected: Array, around: float = 0.0, tolerance: float = VALUE_TOLERANCE
) -> float:
    """The largest difference of two arrays, relative to the largest number around and to one.

    NaN and infinities must agree exactly.

    Raises:
        ValueMismatchError: the difference is too large, or shapes or dtypes differ.
    """
    if y.shape != expected.shape or y.dtype != expected.dtype:
        raise ValueMismatchError(
            f"the result is {y.dtype} {y.shape}, expected {expected.dtype} {expected.shape}."
        )
    finite = np.isfinite(expected)
    same = np.where(finite, np.isfinite(y), (y == expected) | (np.isnan(y) & np.isnan(expected)))
    scale = max(1.0, around, float(np.abs(expected[finite]).max(initial=0)))
    apart = np.where(
        finite & same, np.abs(np.where(finite, y, 0) - np.where(finite, expected, 0)), 0
    )
    error = float(apart.max(initial=0)) / scale
    if not same.all() or not error <= tolerance:
        at = tuple(np.argwhere(~same | (apart == apart.max()))[0].tolist())
        raise ValueMismatchError(
            f"the result is {y[at]!r} at {list(at)}, expected {expected[at]!r}: relative error {error:.1e}, "
            f"allowed {tolerance:.0e}."
        )
    return error


def check_gradient(name: str, sample: Sample, device: str = "cpu") -> GradientCheck:
    """The check of an op's gradient by all of its float arrays, at a sample.

    Raises:
        GradientError: it is wrong.
        KinkError: there is none here.
    """
    places = [i for i, x in enumerate(sample.inputs) if is_float_array(x)]
    given = placed(sample.inputs, device)

    def function(*tensors: Any) -> Any:
        inputs = list(given)
        for place, tensor in zip(places, tensors, strict=True):
            inputs[place] = tensor
        keywords = {k: placed(v, device) for k, v in sample.keywords().items()}
        return OPS[name](*inputs, **keywords)

    return check_grad(function, *(given[i] for i in places))


def _tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)
