"""How attention is computed on a card: in which tiles, with how much shared memory, by kernels made for what.

A kernel is made for a type, a size of heads, its tiles and what it can do besides (EXTRAS), so that no more is compiled
than is used and a plain problem pays for nothing else. See attention_tiles.cu, and docs/decisions/0014.
"""

from typing import Any, NamedTuple

import numpy as np

from ..types import Array
from . import cuda
from .attention import Rules
from .dropout import scale
from .philox import threshold

DENSE, BY_DIFFERENCE, DROPPED, ODD, SCALED = EXTRAS = 1, 2, 4, 8, 16
"""A bias of either kind, dropout, rows that are not whole groups of 16 bytes, a scale that is not positive; as in
attention_tiles.cu."""
BLOCK = 128
"""Threads of a block: four warps; as in attention_tiles.cu."""
PITCH = 40
"""Floats of a row of 32 scores in shared memory; as in attention_tiles.cu."""
WIDEST = {2: 256, 4: 128}
"""Values of a head at most, by their bytes: two tiles of columns have to fit into shared memory."""
CACHED = 16 << 20
"""Bytes of keys and values that the heads of a cluster read: a card's second cache is twice as large or larger."""
SIZES = 16, 32, 48, 64, 80, 96, 128, 256
"""Values that heads may have room for: multiples of 16, those that models have and few others."""
FEW = 4
"""Queries that keys are shared out for, at most."""
LEAST_PIECE = 64
"""Keys of a piece: all that a block has at once, of heads of 64 halves."""
ENOUGH = 528
"""Blocks that keep a large card busy: four for each multiprocessor of an H200."""

PLACE = np.dtype([("batch", "i8"), ("head", "i8"), ("row", "i8")], align=True)
_ARRAYS = "q", "k", "v", "y", "g", "gq", "gk", "gv", "mask", "bias"
_COUNTS = (
    "batch",
    "heads",
    "queries",
    "keys",
    "width",
    "back",
    "ahead",
    "words",
    "pitch",
    "bias_key",
)
_MORE = "together", "cluster"
PROBLEM = np.dtype(
    [
        *((name, PLACE) for name in _ARRAYS),
        *((name, "i4") for name in (*_COUNTS, *_MORE)),
        *(("scale", "f4"), ("more", "f4"), ("threshold", "u4")),
    ],
    align=True,
)
"""As in attention_tiles.cu."""


class Tiles(NamedTuple):
    """How a kernel's tiles are cut.

    Attributes:
        tall: times 16 rows that each of the four warps has.
        wide: columns, of which two tiles are in shared memory.
    """

    tall: int
    wide: int

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return 64 * self.tall


class Kind(NamedTuple):
    """What a kernel is made for, besides its tiles.

    Attributes:
        type: of values, as device code calls it.
        size: values that a head has room for.
        extras: what it can do besides, of EXTRAS.
    """

    type: str
    size: int
    extras: int

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return 4 if self.type == "float" else 2


def size_of(width: int) -> int:
    """Values that kernels have room for in a head of so many."""
    return next(size for size in SIZES if size >= width)


class Launch(NamedTuple):
    """A kernel of a plan.

    Attributes:
        file: and what is to be made of it, as cuda.launch wants it.
        kernel: its name.
        tiles: how they are cut.
        parts: blocks that share one tile of rows.
        shared: bytes of shared memory.
    """

    file: str
    kernel: str
    tiles: Tiles
    parts: int
    shared: int

    def blocks(self, heads: int, rows: int) -> int:
        """Of so many heads of all batch rows and so many rows of each."""
        return heads * self.parts * -(-rows // self.tiles.rows)


def forward(kind: Kind, queries: int) -> Launch:
    """The result: rows are queries, columns keys."""
    if kind.itemsize == 4:
        tiles = Tiles(2 if kind.size <= 64 and queries > 64 else 1, 32)
    elif kind.size <= 64:
        tall = 2 if queries > 64 else 1
        tiles = Tiles(tall, 32 if tall == 2 and kind.extras & DENSE else 64)
    elif kind.size > 128 or kind.extras & DENSE:
        tiles = Tiles(1, 32)
    else:
        tiles = Tiles(2, 32) if queries > 64 and kind.extras in (0, DROPPED) else Tiles(1, 64)
    return _launch("attention", kind, tiles, 1, _columns(kind, tiles) + _rows(kind, tiles))


def keys(kind: Kind) -> Launch:
    """The gradients of keys and values: rows are keys, columns queries, of which there are two numbers each."""
    tiles = _back(kind)
    if kind.itemsize == 4:
        parts = 2 if kind.size > 64 else 1
    else:  # shares are whole groups of 64 values
        parts = 2 if kind.size > 128 or (kind.size == 128 and kind.extras & DENSE) else 1
    numbers = 2 * 2 * 4 * tiles.wide
    shared = _columns(kind, tiles) + 2 * _rows(kind, tiles) + numbers
    return _launch("attention_pullback keys", kind, tiles, parts, shared)


def queries(kind: Kind) -> Launch:
    """The gradient of queries: rows are queries, columns keys. Differences are added up in shared memory."""
    tiles = _back(kind)
    scores = 4 * tiles.rows * PITCH if kind.itemsize == 2 and kind.extras & BY_DIFFERENCE else 0
    shared = _columns(kind, tiles) + 2 * _rows(kind, tiles) - _weights(kind, tiles) + scores
    return _launch("attention_pullback queries", kind, tiles, 1, shared)


def _back(kind: Kind) -> Tiles:
    if kind.itemsize == 4:
        return Tiles(1, 32)
    scarce = kind.size > (64 if kind.extras & DENSE else 128)
    return Tiles(2 if kind.size <= 64 and not kind.extras & DENSE else 1, 32 if scarce else 64)


def _columns(kind: Kind, tiles: Tiles) -> int:
    """Bytes of two kinds of columns, and of a bias by difference, twice."""
    differences = 4 * (tiles.rows + tiles.wide) if kind.extras & BY_DIFFERENCE else 0
    return 2 * (2 * kind.itemsize * kind.size * tiles.wide + differences)


def _rows(kind: Kind, tiles: Tiles) -> int:
    """Bytes of a kind of rows, and of their weights."""
    return kind.itemsize * kind.size * tiles.rows + _weights(kind, tiles)


def _weights(kind: Kind, tiles: Tiles) -> int:
    """Bytes of scores that are the left side of a product: of floats alone; of halves they are in registers."""
    return 4 * tiles.rows * PITCH if kind.itemsize == 4 else 0


def _launch(file: str, kind: Kind, tiles: Tiles, parts: int, shared: int) -> Launch:
    shares = [parts] if file.endswith("keys") else []
    made = " ".join(map(str, (kind.type, kind.size, *tiles, *shares, kind.extras)))
    name = "attention_forward" if file == "attention" else file.replace(" ", "_")
    return Launch(f"{file} {made}", f"{name}_{kind.type}", tiles, parts, shared)


class Decoding(NamedTuple):
    """How a few queries are computed, which a tile would not fill.

    Attributes:
        file: and what is to be made of it, as cuda.launch wants it.
        type: as kernels' names end.
        pieces: of the keys, each of a block.
        first: key that some query may see.
        length: of a piece.
    """

    file: str
    type: str
    pieces: int
    first: int
    length: int


def decoding(kind: Kind, width: int, heads: int, queries: int, keys: int, back: int) -> Decoding:
    """For so many heads of all batch rows, whose queries see so many positions back."""
    lanes = next(n for n in (2, 4, 8, 16, 32) if n * 16 >= width * kind.itemsize)
    first = max(0, keys - queries - back + 1)
    pieces = max(1, min(-(-(keys - first) // LEAST_PIECE), -(-2 * ENOUGH // heads)))
    length = -(-(keys - first) // pieces)
    most = next(n for n in (1, 2, 4) if n >= queries)
    odd = str(bool(kind.extras & ODD)).lower()
    made = f"attention_decode {kind.type} {lanes} {most} {odd}"
    return Decoding(made, kind.type, -(-(keys - first) // length), first, length)


def fits(*arrays: Array) -> bool:
    """Whether these are of one type that kernels know, with rows of one width without gaps."""
    kind, width = arrays[0].dtype, arrays[0].shape[3]
    return (
        kind.name in cuda.TYPES
        and 1 <= width <= WIDEST[kind.itemsize]
        and all(a.dtype == kind and a.shape[3] == width and a.size > 0 for a in arrays)
        and all(a.strides[3] == kind.itemsize or width == 1 for a in arrays)
    )


def bias_fits(bias: Array | None, q: Array) -> bool:
    """Whether a bias is one by difference; or dense, of the same type and heads that registers suffice for."""
    if bias is None or bias.ndim == 2:
        return bias is None or bias.dtype.name in cuda.TYPES
    beside = bias.strides[3] == bias.dtype.itemsize or bias.shape[3] == 1
    return bool(bias.dtype == q.dtype and beside and q.shape[3] <= 128)


def has_room(*launches: Launch) -> bool:
    """Whether a block of this card can have the shared memory that these want: up to 149 KB, and some have 99."""
    return max(launch.shared for launch in launches) <= cuda.card().shared


def is_odd(*arrays: Array) -> bool:
    """Whether some rows are not whole groups of 16 bytes."""
    return any(
        cuda.address(a) % 16
        or a.shape[3] * a.dtype.itemsize % 16
        or any(s % 16 for s, n in zip(a.strides[:3], a.shape, strict=False) if n > 1)
        for a in arrays
    )


def kind_of(q: Array, bias: Array | None, rules: Rules, *arrays: Array) -> Kind:
    """What a kernel for queries as q is made for, whose rows may be odd if those of some array are."""
    extras = ODD if is_odd(*arrays) else 0
    if bias is not None:
        extras |= DENSE if bias.ndim == 4 else BY_DIFFERENCE
    if rules.rate:
        extras |= DROPPED
    if rules.scale <= 0:
        extras |= SCALED
    name = "float" if q.dtype == np.float32 else q.dtype.name
    return Kind(name, size_of(q.shape[3]), extras)


def place(a: Array) -> tuple[int, ...]:
    """Values from one batch row, head and row to the next, none along an axis of length one."""
    steps = zip(a.strides[:3], a.shape, strict=False)
    return tuple(step // a.dtype.itemsize if n > 1 else 0 for step, n in steps)


def problem(q: Array, k: Array, rules: Rules, bias: Array | None, **arrays: Array) -> Any:
    """The structure that kernels are given, without a place of the mask."""
    (B, H, T, K), S = q.shape, k.shape[2]
    made = np.zeros(1, PROBLEM)
    for name, a in {"q": q, "k": k, **arrays}.items():
        made[name] = place(a)
    if bias is not None and bias.ndim == 4:
        made["bias"], made["bias_key"] = place(bias), bias.shape[3] > 1
    back, ahead = (min(n, S + T) for n in rules.reach(T, S))
    numbers = {
        "batch": B, "heads": H, "queries": T, "keys": S, "width": K, "back": back, "ahead": ahead,
        "words": -(-S // 32), "together": 1,
        "cluster": max(1, min(B * H, CACHED // (2 * S * K * q.dtype.itemsize))),
        "scale": rules.scale, "more": scale(rules.rate) if rules.rate else 1,
        "threshold": threshold(rules.rate) if rules.rate else 0,
    }  # fmt: skip
    for name, value in numbers.items():
        made[name] = value
    return made
