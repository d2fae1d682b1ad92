"""Products of whole numbers, which are exact, in every layout: for the emulated Hopper kernels, and for a card."""

import itertools
from typing import NamedTuple

import numpy as np

LETTERS = list(itertools.product("nt", repeat=2))
"""How a and b lie: n by rows, t by columns."""


class Case(NamedTuple):
    """A product, for a card of so many multiprocessors if it is emulated.

    Attributes:
        tile: the name of the plan, without "hopper".
        letters: how a and b lie.
        sizes: rows, columns, terms.
        split: parts of each sum.
        processors: that blocks are for.
        batch: of a and of b; None for a matrix.
        dtype: of a and b.
    """

    tile: str
    letters: tuple[str, str]
    sizes: tuple[int, int, int] = (130, 300, 136)
    split: int = 1
    processors: int = 3
    batch: tuple[int | None, int | None] = (None, None)
    dtype: str = "bfloat16"

    def __str__(self):
        words = (self.tile, *self.letters, *self.sizes, self.split, self.processors, *self.batch)
        return "-".join(map(str, words)).replace(" ", "-").replace("None", "")


CASES = [
    # every layout, with half of a tile's rows for a group, two quarters of them, and a whole tile
    *(Case("128x256 together", letters) for letters in LETTERS),
    Case("256x128 together", ("n", "t"), (300, 130, 136), dtype="float16"),
    Case("256x128 together", ("t", "n"), (300, 130, 136), dtype="float16"),
    *(Case("128x192 turns", letters, (130, 300, 136), processors=1) for letters in LETTERS),
    Case("128x192 together", ("t", "n")),
    Case("128x128 turns", ("n", "t")),
    # one block for many tiles; a block for each; more steps than stages, so that the ring goes round within a tile
    Case("128x128 turns", ("n", "n"), (300, 300, 72), processors=1),
    Case("128x128 turns", ("n", "n"), (130, 70, 600), processors=40),
    Case("128x256 together", ("n", "n"), (130, 70, 700), processors=2),
    # more than eight rows of tiles, which are walked in groups
    Case("128x64 turns", ("n", "n"), (1160, 130, 40), processors=5),
    # pairs of blocks; the second of the last pair has no rows
    *(
        Case("128x256 together paired", letters, (300, 300, 136), processors=5)
        for letters in LETTERS
    ),
    Case("128x128 turns paired", ("n", "t"), (300, 300, 136), processors=2),
    Case("128x128 turns paired", ("t", "n"), (130, 130, 400), 2, 4, (2, None)),
    # small and odd
    Case("128x64 turns", ("n", "t"), (1, 1, 1)),
    Case("128x64 turns", ("t", "n"), (3, 5, 7)),
    Case("128x64 turns", ("n", "n"), (64, 8, 64)),
    # parts of sums, the last of them short
    Case("128x256 together", ("t", "n"), (130, 70, 330), split=3, processors=2),
    Case("128x192 turns", ("t", "n"), (130, 200, 330), split=2, processors=1),
    # several products, of which one operand may be the same in all
    Case("128x192 turns", ("n", "n"), (70, 90, 72), processors=2, batch=(3, 3)),
    Case("128x256 together", ("n", "t"), (70, 90, 72), batch=(2, None)),
    Case("128x128 turns", ("t", "n"), (70, 90, 136), split=2, batch=(None, 3)),
]


def drawn(rng, case, dtype, xp=np):
    """A and b of whole numbers up to 8, each in rows (or columns) of more values than are seen; the rest is NaN."""
    rows, columns, terms = case.sizes
    return tuple(
        _matrix(rng, batch, shape, letter == "t", dtype, xp)
        for batch, shape, letter in zip(
            case.batch, ((rows, terms), (terms, columns)), case.letters, strict=True
        )
    )


def _matrix(rng, batch, shape, turned, dtype, xp):
    rows, columns = shape[::-1] if turned else shape
    lead = () if batch is None else (batch,)
    room = np.full((*lead, rows, -(-columns // 8) * 8 + 8), np.nan, dtype)
    room[..., :columns] = rng.integers(-8, 9, (*lead, rows, columns))
    seen = xp.asarray(room)[..., :columns]
    return seen.swapaxes(-1, -2) if turned else seen
