"""Many arrays on a device in one launch: each block takes a piece of one of them.

What stays where it is lies in a table on the device, which is made once. Gradients are new arrays at each step, so
their addresses go with the launch: nothing has to be sent before it, and a captured graph keeps them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda

PIECE = 4096
"""Values of a piece; as in adam.cu."""

ARRAYS = 448
"""Arrays of a launch: with the rest their addresses stay below the 4,096 bytes of arguments that every driver takes."""

KINDS = {name: number for number, name in enumerate(cuda.TYPES)}


class Pieces:
    """Arrays of these sizes, cut into pieces of 4,096 values.

    Args:
        like: an array where they lie.
        sizes: of the arrays.
        columns: for each array five numbers that a kernel wants to know of it, as in adam.cu.
    """

    def __init__(
        self, like: Array, sizes: Sequence[int], columns: Sequence[Sequence[int]] = ()
    ) -> None:
        counts = [-(-size // PIECE) for size in sizes]
        self.first = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        table = np.zeros((len(counts), 8), np.int64)
        table[:, 0], table[:, 1] = sizes, self.first[:-1]
        if columns:
            table[:, 2:] = columns
        self.count: int = self.first[-1]
        xp = namespace(like)
        row_of = np.repeat(np.arange(len(counts)), counts).astype(np.uint32)
        there = xp.asarray(
            np.concatenate([table.reshape(-1).view(np.uint8), row_of.view(np.uint8)])
        )
        self._table = there[: table.nbytes].view(np.int64).reshape(table.shape)
        self._row_of = there[table.nbytes :].view(np.uint32)

    def launch(self, kernel: str, arrays: Sequence[Array], *arguments: Any) -> None:
        """Start a kernel with a block for each piece of these arrays: one launch for 448 of them."""
        for row in range(0, len(arrays), ARRAYS):
            given = arrays[row : row + ARRAYS]
            start, stop = self.first[row], self.first[row + len(given)]
            places = self._table, self._row_of, row, start
            cuda.launch(
                "adam", kernel, stop - start, cuda.THREADS, _addresses(given), *places, *arguments
            )


def _addresses(arrays: Sequence[Array]) -> Any:
    """Where arrays begin, with their types in the two highest bits, as one value that goes with a launch."""
    made = np.zeros(ARRAYS, np.uint64)
    made[: len(arrays)] = [cuda.address(a) | KINDS[a.dtype.name] << 62 for a in arrays]
    return made.view(f"V{made.nbytes}")
