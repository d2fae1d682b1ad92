"""A second implementation for GPUs, in Python: written to be read, compiled by Numba for CuPy's arrays.

Here variants named "numba-cuda" are registered, which compute only where they are asked for by name:

    with attention_forward.using("numba-cuda"):
        ...

Of a product there are two more, "numba-cuda-naive" and "numba-cuda-shared", the steps that lead to it. All take
float32. Each file here holds kernels and, at its end, what launches them, which chooses sizes of blocks as constants
of the file; a caller may choose others. The files import Numba, so they are themselves imported when a variant is
first called; each kernel is compiled for the arrays of its first call.

Kernels also run without a GPU, on NumPy's arrays in Numba's simulator, one Python thread for each of a block's: set
NUMBA_ENABLE_CUDASIM=1 before Numba is imported, and call the functions of the files. It checks indices, barriers and
arithmetic, in very small sizes. It knows no types, so a float64 among float32 shows only on a device.
"""

import importlib
from collections.abc import Callable
from typing import Any

from ...errors import MissingExtraError
from ...types import Array
from ..attention import attention_forward, attention_pullback
from ..gelu import gelu_forward, gelu_pullback, gelu_tanh_forward, gelu_tanh_pullback
from ..layer_norm import (
    layer_norm_forward,
    layer_norm_pullback,
    rms_norm_forward,
    rms_norm_pullback,
)
from ..matmul import linear_forward, product
from ..registry import Kernel
from ..softmax import softmax_forward, softmax_pullback

LARGEST_HEAD = 128
"""What a tile of queries, keys, values and gradients of leaves room for in the shared memory of a block."""


def _single(*arguments: Any) -> bool:
    """Whether all arrays are float32 and none is empty."""
    arrays = [a for a in arguments if hasattr(a, "dtype")]
    return all(a.dtype == "float32" and a.size > 0 for a in arrays)


def _along_rows(*arguments: Any) -> bool:
    *arrays, axis = arguments
    return _single(*arrays) and axis in (-1, arrays[0].ndim - 1)


def _heads(q: Array, k: Array, v: Array, *rest: Array) -> bool:
    return _single(q, k, v, *rest) and max(q.shape[3], v.shape[3]) <= LARGEST_HEAD


def _are_plain(rules: Any) -> bool:
    return not rules.rate and rules.window is None


def _attends(q: Array, k: Array, v: Array, bias: Any, rules: Any, keep: bool) -> bool:
    return _heads(q, k, v) and bias is None and _are_plain(rules) and not keep


def _attended(
    g: Array, g_p: Any, q: Array, k: Array, v: Array, bias: Any, rules: Any, found: Any, into: Any
) -> bool:
    return (
        _heads(q, k, v, g, *into)
        and all(a is None for a in (g_p, bias))
        and _are_plain(rules)
        and found.log_sum is not None
    )


def _register(
    kernel: Kernel, file: str, function: str, when: Callable[..., bool], name: str = "numba-cuda"
) -> None:
    def build() -> Any:
        try:
            return getattr(importlib.import_module(f".{file}", __name__), function)
        except (ImportError, RuntimeError) as error:  # the latter where a library is missing
            said = str(error).partition("\n")[0]
            raise MissingExtraError(
                f'"{name}" needs Numba, its package for CUDA and their libraries ({said}). '
                'pip install "tinyplm[cuda13]" or "tinyplm[cuda12]", whichever `tinyplm doctor` says.'
            ) from error

    kernel.variant(name, library="cupy", when=when, by_name=True)(build)


_register(product, "matmul", "product", _single)
_register(product, "matmul", "product_naive", _single, "numba-cuda-naive")
_register(product, "matmul", "product_shared", _single, "numba-cuda-shared")
_register(linear_forward, "matmul", "linear", _single)
_register(softmax_forward, "rows", "softmax", _along_rows)
_register(softmax_pullback, "rows", "softmax_pullback", _along_rows)
_register(layer_norm_forward, "rows", "layer_norm", _single)
_register(layer_norm_pullback, "rows", "layer_norm_pullback", _single)
_register(rms_norm_forward, "rows", "rms_norm", _single)
_register(rms_norm_pullback, "rows", "rms_norm_pullback", _single)
_register(gelu_forward, "gelu", "forward", _single)
_register(gelu_pullback, "gelu", "pullback", _single)
_register(gelu_tanh_forward, "gelu", "tanh_forward", _single)
_register(gelu_tanh_pullback, "gelu", "tanh_pullback", _single)
_register(attention_forward, "attention", "forward", _attends)
_register(attention_pullback, "attention", "pullback", _attended)
