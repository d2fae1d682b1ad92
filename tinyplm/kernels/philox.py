"""Philox 4x32-10: random numbers that are a function of a counter and a key, sixteen bytes at a time.

Salmon et al., 2011, "Parallel Random Numbers: As Easy as 1, 2, 3". Attention drops probabilities by it: whoever makes
one, in whatever order, draws for its place. One call decides for eight keys of a query with 16 bits each: those of
columns 8 i + 2 q and 8 i + 2 q + 1 of a group of 32, i = 0 to 3, which one thread of a graphics card owns.
"""

from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array

_LOW = (1 << 32) - 1
_TIMES = 0xD2511F53, 0xCD9E8D57
_MORE = 0x9E3779B9, 0xBB67AE85
GROUP = 32
"""Keys that four counters decide for."""


def philox(x: Any, y: Any, z: Any, w: Any, key: Any, key_high: Any) -> Any:
    """Four random words of 32 bits for a counter of four words and a key of two.

    The same in plain Python, with arrays of int64, and in compiled loops.
    """
    for _ in range(10):
        a, b = _TIMES[0] * x, _TIMES[1] * z
        x, y = ((b >> 32) & _LOW) ^ y ^ key, b & _LOW
        z, w = ((a >> 32) & _LOW) ^ w ^ key_high, a & _LOW
        key, key_high = (key + _MORE[0]) & _LOW, (key_high + _MORE[1]) & _LOW
    return x, y, z, w


def threshold(rate: float) -> int:
    """Below it a decision of 16 bits drops: the rate is met to 2^-17. With a rate of 1 see dropout.scale."""
    return min(round(rate * 2.0**16), (1 << 16) - 1)


def kept(seed: int, heads: Array, queries: Array, keys: int, threshold: int) -> Array:
    """Which probabilities stay, (..., keys), for numbers of heads among those of all batch rows, and of queries.

    Heads and queries are arrays of int64 that broadcast to (...).
    """
    xp = namespace(heads)
    groups = -(-keys // GROUP)
    quads = xp.arange(4 * groups, dtype=np.int64)
    x, y = xp.broadcast_arrays(heads[..., None], queries[..., None])
    words = philox(x, y, quads, 0 * quads, seed & _LOW, seed >> 32)
    shape = (*words[0].shape[:-1], groups, 4)
    # Decisions (..., groups, i, q, of each word the lower half first): the order of keys.
    both = xp.stack([word.reshape(shape) for word in words], axis=-2)
    drawn = xp.stack([both & 0xFFFF, both >> 16], axis=-1)
    return drawn.reshape(*shape[:-2], GROUP * groups)[..., :keys] >= threshold
