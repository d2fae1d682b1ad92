"""What the engine says when something does not fit: the op, the dtypes and the shapes."""

from typing import Any

import numpy as np

from ..backend import namespace, to_numpy
from ..errors import DtypeError, NonFiniteError, ShapeError, TinyplmError
from ..types import Array


def check_finite(where: str, result: Any) -> None:
    """Raise if a result or a gradient has a NaN or an infinity, and say where; waits for a card."""
    for part in result if isinstance(result, tuple) else (result,):
        if part is None or callable(part) or not is_float(part):
            continue
        finite = namespace(part).isfinite(part)
        if not finite.all():
            at = np.argwhere(~to_numpy(finite))[0].tolist()
            value = to_numpy(part)[tuple(at)]
            raise NonFiniteError(
                f"{where} made the first {value} at {at} of {describe(part)}. Its inputs were finite, or came from "
                "outside: look at their range."
            )


def explained(name: str, arrays: list[Any], error: Exception) -> Exception:
    """The same error with the op and its inputs in the message."""
    if isinstance(error, TinyplmError):
        return error
    given = ", ".join(map(describe, arrays))
    message = f"{name}: {error} (inputs: {given})"
    if isinstance(error, ValueError):  # an axis that is not there is an IndexError too
        return ShapeError(message)
    if isinstance(error, IndexError):
        return IndexError(message)
    if isinstance(error, TypeError):
        return DtypeError(message)
    error.add_note(f"in {name} of {given}")
    return error


def describe(x: Any) -> str:
    """Dtype and shape, for messages."""
    return f"{x.dtype} {x.shape}" if hasattr(x, "shape") else repr(x)


def is_float(x: Any) -> bool:
    """Whether an array has one of the float dtypes that the engine differentiates."""
    return x.dtype.name in ("float32", "float64", "float16", "bfloat16")


def is_half(dtype: Any) -> bool:
    """Whether a dtype has two bytes: float16, or bfloat16, whose kind is V."""
    return bool(dtype.itemsize == 2 and dtype.kind in "fV")


def is_numeric(array: Array) -> bool:
    """Whether an array holds numbers that a tensor can hold."""
    return array.dtype.kind in "iub" or is_float(array)
