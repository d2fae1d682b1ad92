"""Products that the kernels for every card are tried with, emulated or on a card; see matmul_cases.py."""

import numpy as np
from matmul_cases import LETTERS, Case

NN, NT, TN, TT = LETTERS
SMALL, LARGE = "64x64", "128x128"
WHOLE = [
    # every layout with chunks of both widths and with both ways to read ahead; some with the others
    *(Case(SMALL, letters, (70, 130, 75)) for letters in LETTERS),
    *(Case(LARGE, letters, (130, 140, 75)) for letters in LETTERS),
    *(Case("128x256", letters, (130, 260, 75)) for letters in (NN, TT)),
    *(Case("128x128-4", letters, (130, 140, 75)) for letters in (NT, TN)),
    Case("128x64", TN, (130, 70, 75)),
    Case("64x128", NT, (70, 130, 75)),
    Case(SMALL, NT, (70, 130, 75), dtype="float16"),
    # one step, as many as stages, more; one value; columns but no terms
    *(Case(SMALL, NN, (17, 9, terms)) for terms in (1, 31, 32, 96, 128, 129, 260)),
    *(Case(SMALL, letters, (1, 1, 1)) for letters in LETTERS),
    # more than eight rows of tiles, which are walked in groups
    Case(SMALL, NN, (650, 130, 8)),
    # parts of sums, the last of them short
    *(Case(SMALL, TN, (70, 72, 330), split=split) for split in (2, 3, 11)),
    Case(SMALL, NN, (3, 5, 1000), split=7),
    # several products, of which one operand may be the same in all
    Case(SMALL, NN, (70, 72, 40), batch=(3, 3)),
    Case(SMALL, NT, (70, 72, 40), batch=(2, None)),
    Case(SMALL, TN, (70, 72, 136), split=2, batch=(None, 3)),
]
SINGLE = [
    *(Case(SMALL, letters, (70, 75, 45)) for letters in LETTERS),
    Case(LARGE, NN, (130, 131, 45)),
    Case(SMALL, NT, (70, 75, 130), split=2, batch=(3, None)),
]
"""These are tried with operands that begin anywhere."""
PLAIN = [
    *(Case(SMALL, letters, (70, 75, 29), dtype="float32") for letters in LETTERS),
    *(Case(LARGE, letters, (130, 132, 29), dtype="float32") for letters in LETTERS),
    *(Case(SMALL, NN, (9, 5, terms), dtype="float32") for terms in (1, 8, 32, 33)),
    Case(SMALL, TN, (70, 72, 330), split=3, dtype="float32"),
    Case(SMALL, NT, (40, 20, 24), batch=(2, 1), dtype="float32"),
]
FEW = [
    *(Case("few", ("n", b), (rows, 136, 77)) for b in "nt" for rows in (1, 7, 16)),
    *(Case("few", ("n", b), (5, 70, 1100)) for b in "nt"),
    *(Case("few", ("n", b), (3, 70, 1100), split=3, dtype="float16") for b in "nt"),
    *(Case("few", ("n", b), (rows, 140, 77), dtype="float32") for b in "nt" for rows in (1, 7)),
    *(Case("few", ("n", b), (2, 70, 1100), split=2, dtype="float32") for b in "nt"),
    Case("few", NN, (2, 70, 40), batch=(3, None)),
]


def moved(a, xp=np):
    """A copy whose stored rows begin anywhere: one value behind an even place, and an odd number apart."""
    stored = a.swapaxes(-1, -2) if a.strides[-1] > a.strides[-2] else a
    *lead, rows, columns = stored.shape
    room = xp.full((*lead, rows, (columns | 1) + 2), float("nan"), a.dtype)
    inner = room[..., 1 : columns + 1]
    inner[...] = stored
    return inner if stored is a else inner.swapaxes(-1, -2)
