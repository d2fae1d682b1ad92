"""Plans of the tiers for every card since compute capability 8.0: tiles of tensor cores, few rows, tiles of float32."""

from collections.abc import Iterator
from typing import NamedTuple

from .cuda import Card
from .matmul_plan import (
    LEAST_PART,
    SECOND_KERNEL,
    SHARED_BYTES,
    Plan,
    Problem,
    Speed,
    cut,
    seconds,
    speed,
    splits,
    tiles_of,
    traffic,
)

DEPTH = 32
"""Terms that a tile of tensor cores brings at a time; as in matmul.cu."""

PLAIN_DEPTH = 8
"""The same of a tile of float32; as in matmul_float32.cu."""


# ---- tiles of tensor cores, by mma.sync: every card since compute capability 8.0


class Tile(NamedTuple):
    """A tile of matmul.cu.

    Attributes:
        name: of its plans.
        rows: of the result.
        columns: of the result.
        down: warps that share its rows.
        across: warps that share its columns.
        stages: tiles of terms under way at once.
        resident: blocks that its registers let a multiprocessor have.
    """

    name: str
    rows: int
    columns: int
    down: int
    across: int
    stages: int
    resident: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.down * self.across

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.warps

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory: the stages, in which sums are put in rows at the end."""
        return self.stages * (self.rows + self.columns) * DEPTH * 2

    def clocks(self, has: Speed) -> float:
        """Of 16 terms: the tensor cores', L2's, or shared memory's, which copies write once and warps read."""
        copied = 2 * 16 * (self.rows + self.columns)
        read = 2 * 16 * self.warps * (self.rows // self.down + self.columns // self.across)
        computing = 16 * self.rows * self.columns / has.tensor
        return max(computing, copied / has.cache, (copied + read) / SHARED_BYTES)


TILES = (
    Tile("128x256", 128, 256, 2, 4, 4, 1),
    Tile("128x128", 128, 128, 2, 4, 4, 2),
    Tile("128x128-4", 128, 128, 2, 2, 4, 2),
    Tile("128x64", 128, 64, 2, 2, 4, 3),
    Tile("64x128", 64, 128, 2, 2, 4, 3),
    Tile("64x64", 64, 64, 2, 2, 4, 4),
)
"""Two are 128x128: eight warps, whose reads are shared memory's limit on Hopper, and four with more registers."""


def tensor_plans(problem: Problem, card: Card, split: int | None = None) -> Iterator[Plan]:
    """Those of the tiles that a card has room for."""
    if problem.dtype == "float32":
        return
    letters = "nt"[problem.a_turned] + "nt"[problem.b_turned]
    how = "whole" if problem.copies else "single"
    for tile in TILES:
        if tile.shared > card.shared:
            continue
        down, across = tiles_of(problem, tile.rows, tile.columns)
        tiles = problem.batch * down * across
        options = splits(problem, tiles, DEPTH, card)
        size, warps = f"{tile.rows}x{tile.columns}", f"{tile.down}x{tile.across}"
        for parts, chunk in options if split is None else [cut(problem.terms, split, DEPTH)]:
            clocks = tile.clocks(speed(card)) * chunk / 16
            last = "plain" if parts > 1 else problem.last
            yield Plan(
                "tensor", tile.name,
                " ".join(map(str, ("matmul", problem.dtype, *tile[1:], *letters, how, last))),
                f"product_{problem.dtype}_{size}_{warps}_{letters}_{how}_{last}",
                (tile.rows, tile.columns, DEPTH), tile.stages, tile.threads, tile.shared,
                tiles * parts, parts, chunk,
                seconds(problem, card, tiles * parts, clocks, tile.resident, tile.warps, parts),
            )  # fmt: skip


# ---- few rows: b is read once, and its bytes are the time


class Few(NamedTuple):
    """A kernel for few rows: of matmul_few.cu, or of matmul_few_float32.cu.

    Attributes:
        rows: at most.
        columns: of a block.
        loads: of 16 bytes of b that a thread has under way.
        shared: bytes of dynamic shared memory.
    """

    rows: int
    columns: int
    loads: int
    shared: int


FEW_THREADS = 256
LATENCY = 1e-6
"""Seconds from asking for a part of b to having it; a guess."""


def few(problem: Problem) -> Few:
    """That for so many rows, or for as many as there is one for."""
    if problem.dtype != "float32":
        return Few(16, 64, 16, 8 * 16 * (64 + 8) * 4)  # sums of eight warps; rows of a before that
    rows = min(8, 1 << (problem.rows - 1).bit_length())
    return Few(rows, 64 if problem.b_turned else 128, 8, 0)


def few_plans(problem: Problem, card: Card, split: int | None = None) -> Iterator[Plan]:
    """The one for few rows, where both operands can be read by 16 bytes."""
    kind = few(problem)
    if problem.rows > kind.rows or problem.a_turned or not problem.copies:
        return
    tiles = problem.batch * -(-problem.columns // kind.columns)
    layout = "t" if problem.b_turned else "n"
    options = splits(problem, tiles, LEAST_PART, card)
    for parts, chunk in options if split is None else [cut(problem.terms, split, LEAST_PART)]:
        last = "plain" if parts > 1 else problem.last
        file, kernel = f"matmul_few {problem.dtype}", f"few_{problem.dtype}"
        if problem.dtype == "float32":
            file, kernel = f"matmul_few_float32 {kind.rows}", f"few_float32_{kind.rows}"
        moved, again = traffic(problem, parts)
        memory = speed(card).memory
        rounds = -(-tiles * parts // (2 * card.processors))
        size = kind.columns * (4 if problem.dtype == "float32" else 2)  # bytes of a term of b
        waits = -(-min(chunk, problem.terms) * size // (FEW_THREADS * 16 * kind.loads))
        reading = LATENCY * (1 + rounds * waits)
        adding = SECOND_KERNEL + again / memory if parts > 1 else 0.0
        yield Plan(
            "few", "few", f"{file} {layout} {last}", f"{kernel}_n{layout}_{last}",
            (kind.rows, kind.columns, LEAST_PART), 1, FEW_THREADS, kind.shared,
            tiles * parts, parts, chunk, max(reading, moved / memory) + adding,
        )  # fmt: skip


# ---- tiles of float32, by plain products


class PlainTile(NamedTuple):
    """A tile of matmul_float32.cu.

    Attributes:
        name: of its plans.
        rows: of the result.
        columns: of the result.
        high: rows of a thread.
        wide: columns of a thread.
        stages: tiles of terms under way at once.
        resident: blocks that its registers let a multiprocessor have.
    """

    name: str
    rows: int
    columns: int
    high: int
    wide: int
    stages: int
    resident: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.rows * self.columns // (self.high * self.wide)

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory."""
        return self.stages * PLAIN_DEPTH * (self.rows + 4 + self.columns + 4) * 4


PLAIN_TILES = (
    PlainTile("128x128", 128, 128, 8, 8, 4, 2),
    PlainTile("64x64", 64, 64, 8, 4, 4, 4),
)


def plain_plans(problem: Problem, card: Card, split: int | None = None) -> Iterator[Plan]:
    """Those for float32."""
    if problem.dtype != "float32":
        return
    letters = "nt"[problem.a_turned] + "nt"[problem.b_turned]
    for tile in PLAIN_TILES:
        down, across = tiles_of(problem, tile.rows, tile.columns)
        tiles = problem.batch * down * across
        options = splits(problem, tiles, PLAIN_DEPTH, card)
        for parts, chunk in options if split is None else [cut(problem.terms, split, PLAIN_DEPTH)]:
            last = "plain" if parts > 1 else problem.last
            clocks = tile.rows * tile.columns * chunk / speed(card).plain
            clocks *= 1 + (tile.high + tile.wide) / (
                tile.high * tile.wide
            )  # reads of shared memory
            yield Plan(
                "plain", tile.name,
                " ".join(map(str, ("matmul_float32", *tile[1:], *letters, last))),
                f"product_float32_{tile.rows}x{tile.columns}_{letters}_{last}",
                (tile.rows, tile.columns, PLAIN_DEPTH), tile.stages, tile.threads, tile.shared,
                tiles * parts, parts, chunk,
                seconds(
                    problem, card, tiles * parts, clocks, tile.resident, tile.threads // 32, parts
                ),
            )  # fmt: skip
