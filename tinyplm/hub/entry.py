"""One array of a model file, known by name, shape and dtype before any of it is read."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Array


@dataclass(frozen=True)
class TensorEntry:
    """A named array in a file: what it is now, its values when `read` is called."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: Path
    reader: Callable[[], Array] = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """How many values it holds."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product

    def read(self) -> Array:
        """The values, in a fresh array that belongs to the caller.

        Raises:
            CheckpointError: the file is damaged, or changed since it was first looked at.
        """
        return self.reader()


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of a NumPy or ml_dtypes name, such as "float32" or "bfloat16"."""
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def shown(text: object, *, limit: int = 80) -> str:
    """A name from a file, quoted, escaped and cut, fit for a message."""
    full = repr(text) if isinstance(text, str) else f"a value of type {type(text).__name__}"
    return full if len(full) <= limit else f"{full[:limit]}...'"


def listed(names: list[str], *, limit: int = 6) -> str:
    """Some names and how many more there are."""
    head = ", ".join(shown(name).strip("'") for name in names[:limit])
    more = len(names) - limit
    return f"{head} and {more:,} more" if more > 0 else head
