"""The aliases used in signatures."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
"""An array of NumPy or of CuPy; the array decides which library computes."""

Pullback: TypeAlias = Callable[..., Any]
"""Given the gradient of a result, the gradients of the positional inputs, in order."""

Batch: TypeAlias = dict[str, Any]
"""Arrays by field name, first axis the batch."""

Generator: TypeAlias = np.random.Generator
"""A source of randomness; randomness is always an argument."""
