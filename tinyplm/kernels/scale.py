"""An array times a number that is not known to the host."""

from typing import Any

from ..types import Array
from . import cuda
from .registry import Kernel


@Kernel
def scale_in_place(x: Array, factor: Array) -> None:
    """Multiply x by the only value of factor; x itself is the result."""
    x *= factor.astype(x.dtype, copy=False)


@scale_in_place.variant(
    "cuda",
    library="cupy",
    when=lambda x, factor: cuda.takes(x) and factor.dtype.name == "float32",
)
def _cuda() -> Any:
    """A factor of 1 leaves x alone, and then nothing is read but the factor."""

    def scale(x: Array, factor: Array) -> None:
        cuda.each_value("scale", f"scale_{x.dtype.name}", (x,), factor)

    return scale if cuda.usable() else None
