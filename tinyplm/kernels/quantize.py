"""Weights in fewer bits: a row of int8 with one scale, or bfloat16.

Rounding to the nearest moves an int8 weight by at most half a step, scale / 2, where scale is the largest of its row
over 127; and a bfloat16 one by at most 2^-8 of itself.
"""

import numpy as np

from ..types import Array

BLOCK = 1 << 20
"""Weights rounded at once."""


def quantize_rows(weight_FD: Array) -> tuple[Array, Array]:
    """Whole numbers from -127 to 127, and for each row what they are multiplied by; float32, finite."""
    F, D = weight_FD.shape
    values, scale = np.empty((F, D), np.int8), np.empty(F, np.float32)
    rows = max(1, BLOCK // max(1, D))
    for start in range(0, F, rows):
        here = slice(start, start + rows)
        block = weight_FD[here].astype(np.float32)
        step = np.abs(block).max(axis=1, initial=0) / np.float32(127)
        step[step == 0] = 1  # a row of zeros
        block /= step[:, None]
        np.rint(block, out=block)
        np.clip(block, -127, 127, out=block)  # a step of very few bits divides to more
        values[here], scale[here] = block, step
    return values, scale


def dequantize_rows(values: Array, scale: Array | None) -> Array:
    """Float32 weights of what `quantize_rows` gave, or of bfloat16 as uint16 where there is no scale."""
    if scale is None:
        wide: Array = (values.astype(np.uint32) << 16).view(np.float32)
        return wide
    made: Array = values.astype(np.float32)
    made *= scale[..., None]
    return made
