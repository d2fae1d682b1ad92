"""How a product is computed on a card: by which kernel, in which tiles, and in how many parts of its sums.

Pure numbers: nothing here touches an array or a card. A *tier* is a family of kernels; it offers plans for a product,
each with the seconds that it is predicted to take, and the best of all is taken. Whoever adds a tier (`add`) says how
its plans are started: matmul_tiles.py has those for every card.

A product is (rows, terms) by (terms, columns), `batch` times. Its result is cut into tiles of one block each. Where
there are fewer tiles than multiprocessors and the sums are long, each sum is cut into parts too (`split`); parts go
to a workspace in float32, and a second kernel adds them up in their order, so that the same bits come out every time.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..errors import ConfigError
from .cuda import Card

GROUP = 8
"""Rows of tiles that are walked together, column by column, so that neighbours in time find their operands in L2."""

MOST_PARTS = 64
"""Of a sum, at most."""

LEAST_PART = 128
"""Terms of a part, at least."""


class Speed(NamedTuple):
    """What a multiprocessor, and the card's memory, are taken to do.

    Attributes:
        tensor: products of 16-bit values in a clock, by mma.sync.
        plain: products of float32 values in a clock.
        cache: bytes that come from L2 in a clock.
        clock: in Hz.
        memory: bytes of a second, of all multiprocessors together.
    """

    tensor: int
    plain: int
    cache: int
    clock: float
    memory: float


SPEEDS = {80: Speed(870, 64, 36, 1.4e9, 1.4e12), 90: Speed(1090, 128, 40, 1.7e9, 4.3e12)}
"""By compute capability, for it and for later ones that have no row. Predictions: 85 % of 1024 products a clock on
Ampere, and of 1280 on Hopper, 63 % of the tensor cores' peak, where mma.sync is said to end."""

SHARED_BYTES = 128
"""That a multiprocessor's shared memory reads or writes in a clock."""

START = 1500.0
"""Clocks from a block's first instruction to its first product, and from its last to its last store; a guess."""

SECOND_KERNEL = 2.5e-6
"""Seconds that another launch takes; a guess."""


class Problem(NamedTuple):
    """A product, as far as a plan depends on it.

    Attributes:
        batch: so many products.
        rows: of a and of the result.
        columns: of b and of the result.
        terms: of each sum.
        dtype: of a and b.
        out: the dtype of the result.
        a_turned: whether a is stored by columns: its rows lie side by side, not its terms.
        b_turned: whether b is stored by columns: its terms lie side by side, not its columns.
        copies: whether every row of both operands, as stored, begins at a multiple of 16 bytes.
        stores: whether every row of the result does, and of all that is added to it or stored beside it.
        last: what is done with sums last: "plain", "gelu", "gelu_tanh", "slope" or "slope_tanh".
    """

    batch: int
    rows: int
    columns: int
    terms: int
    dtype: str
    out: str
    a_turned: bool
    b_turned: bool
    copies: bool
    stores: bool
    last: str = "plain"


class Plan(NamedTuple):
    """One way to compute a product.

    Attributes:
        tier: the family of its kernel.
        name: what it is forced by: "128x128".
        file: of device code, as cuda.launch takes it.
        kernel: its name there.
        tile: rows, columns and terms at a time.
        stages: tiles of terms under way at once.
        threads: of a block.
        shared: bytes of dynamic shared memory of a block.
        blocks: of the grid.
        split: parts that each sum is cut into.
        chunk: terms of a part: a multiple of those of a tile.
        seconds: that it is predicted to take.
    """

    tier: str
    name: str
    file: str
    kernel: str
    tile: tuple[int, int, int]
    stages: int
    threads: int
    shared: int
    blocks: int
    split: int
    chunk: int
    seconds: float


class Tier(NamedTuple):
    """A family of kernels.

    Attributes:
        plans: those that it has for a product on a card, of any split if none is given.
        start: launches one; see matmul.py for the operands.
    """

    plans: Callable[[Problem, Card, int | None], Iterable[Plan]]
    start: Callable[[Plan, Problem, Any], None]


TIERS: dict[str, Tier] = {}
"""By name."""

_forced: tuple[str, int | None] | None = None


def add(name: str, tier: Tier) -> None:
    """Let the plans of a tier compete."""
    TIERS[name] = tier
    _best.cache_clear()


@contextmanager
def forced(name: str, split: int | None = None) -> Iterator[None]:
    """Compute every product by the plan of this name within a block, and in so many parts if that is given."""
    global _forced
    before, _forced = _forced, (name, split)
    try:
        yield
    finally:
        _forced = before


def plan(problem: Problem, card: Card) -> Plan:
    """The plan that is predicted to be the fastest, or the one that is forced.

    Raises:
        ConfigError: there is none of the forced name for this product.
    """
    return _best(problem, card, _forced)


@functools.lru_cache(maxsize=4096)
def _best(problem: Problem, card: Card, wanted: tuple[str, int | None] | None) -> Plan:
    name, split = wanted or (None, None)
    offered = [p for tier in TIERS.values() for p in tier.plans(problem, card, split)]
    found = [p for p in offered if name in (None, p.name)]
    if not found:
        raise ConfigError(
            f"No plan named {name!r} computes {problem} on {card}; there are "
            f"{', '.join(sorted({p.name for p in offered})) or 'none'}."
        )
    return min(found, key=lambda p: p.seconds)


def speed(card: Card) -> Speed:
    """What a card is taken to do."""
    return SPEEDS[max(c for c in SPEEDS if c <= max(card.capability, min(SPEEDS)))]


def splits(
    problem: Problem, tiles: int, depth: int, card: Card, rounds: int = 2
) -> list[tuple[int, int]]:
    """Into how many parts sums may be cut, each with the terms of a part, which fill the last part too.

    More parts than give every multiprocessor so many rounds of tiles are no use.
    """
    most = rounds * card.processors // max(tiles, 1) + 1
    most = min(MOST_PARTS, problem.terms // LEAST_PART, most)
    return sorted({cut(problem.terms, parts, depth) for parts in range(1, max(most, 1) + 1)})


def cut(terms: int, parts: int, depth: int) -> tuple[int, int]:
    """How many parts there are if each has a share of so many, in whole tiles; and the terms of a part."""
    chunk = depth * max(1, -(-terms // (depth * parts)))
    return max(1, -(-terms // chunk)), chunk


def tiles_of(problem: Problem, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of tiles."""
    return -(-problem.rows // rows), -(-problem.columns // columns)


def place(block: int, down: int, across: int, batch: int) -> tuple[int, int, int, int]:
    """Part, product, row and column of tiles of a block, as in matmul.cu.

    Of one part of one product the tiles come one after the other, GROUP rows of them at a time, column by column.
    """
    block, tile = divmod(block, down * across)
    part, one = divmod(block, batch)
    group, within = divmod(tile, GROUP * across)
    rows = min(down - GROUP * group, GROUP)
    return part, one, GROUP * group + within % rows, within // rows


def traffic(problem: Problem, split: int) -> tuple[float, float]:
    """Bytes that must be read and written by the product, and by the kernel that adds up its parts."""
    size, out = (4 if kind == "float32" else 2 for kind in (problem.dtype, problem.out))
    values = problem.batch * problem.rows * problem.columns
    read = size * problem.batch * problem.terms * (problem.rows + problem.columns)
    if split == 1:
        return read + out * values, 0.0
    return read + 4.0 * split * values, 4.0 * split * values + out * values


def seconds(
    problem: Problem, card: Card, blocks: int, clocks: float, resident: int, warps: int, split: int
) -> float:
    """Predicted: the busiest multiprocessor's blocks, or the bytes, whichever is longer; and the adding up.

    Args:
        problem: what is computed.
        card: where.
        blocks: of the grid.
        clocks: of a block's products alone on a multiprocessor that nothing holds back.
        resident: blocks that fit on a multiprocessor together.
        warps: of a block.
        split: parts of each sum.
    """
    has = speed(card)
    rounds = -(-blocks // card.processors)
    together = min(rounds, resident)
    busy = min(1.0, (together * warps + 4) / 12)  # four warps hide two thirds of what they wait for
    computing = rounds * (clocks / busy + START / together) / has.clock
    moved, again = traffic(problem, split)
    adding = SECOND_KERNEL + again / has.memory if split > 1 else 0.0
    return max(computing, moved / has.memory) + adding
