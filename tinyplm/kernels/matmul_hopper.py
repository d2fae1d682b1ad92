"""Products of 16-bit values on Hopper: the tier of plans whose kernel is matmul_hopper.cu.

It is for compute capability 9.0 alone, and for operands whose rows, as they are stored, begin at multiples of 16 bytes;
results may lie anywhere. There is a block for each multiprocessor, which computes one tile after the other: a group of
four warps brings operands, two groups multiply. Blocks may be paired: two of a cluster share an operand.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ..types import Array
from . import cuda, matmul_cuda, matmul_plan, tensor_map
from .cuda import Card
from .matmul_cuda import Layout, Operands
from .matmul_plan import Plan, Problem
from .tensor_map import TensorMap

CAPABILITY = 90
"""The compute capability that has these instructions: neither earlier ones nor later ones do."""

STEP = 64
"""Terms of a stage: 128 bytes, and values along the side of a box; as in matmul_hopper.cu."""

GROUPS = 2
"""Groups of four warps that multiply; one more brings."""

THREADS = 128 * (GROUPS + 1)

TABLES = GROUPS * 4 * 16 * 32 * 4
"""Bytes through which warps put their sums in order."""

SLACK = 1024
"""Bytes, so that stages can begin at a multiple of as many."""


class Tile(NamedTuple):
    """A tile of matmul_hopper.cu.

    Attributes:
        rows: of the result.
        columns: of the result.
        stages: steps under way at once.
        groups: "together", each with half of the rows, or by "turns", each with every second tile.
        blocks: "alone", or "paired", with tiles one above the other, of which each brings half of the columns' operand.
    """

    rows: int
    columns: int
    stages: int
    groups: str
    blocks: str = "alone"

    @property
    def name(self) -> str:
        """Of its plans."""
        paired = " paired" if self.cluster == 2 else ""
        return f"hopper {self.rows}x{self.columns} {self.groups}{paired}"

    @property
    def cluster(self) -> int:
        """Blocks that run together."""
        return 2 if self.blocks == "paired" else 1

    @property
    def sums(self) -> int:
        """Of a thread."""
        return self.rows * self.columns // (128 if self.groups == "turns" else 128 * GROUPS)

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory: stages with two barriers each, and two barriers for turns."""
        return SLACK + self.stages * ((self.rows + self.columns) * STEP * 2 + 16) + 16 + TABLES


TILES = (
    Tile(128, 256, 4, "together"),
    Tile(256, 128, 4, "together"),
    Tile(128, 192, 5, "together"),
    Tile(128, 192, 5, "turns"),
    Tile(128, 128, 6, "turns"),
    Tile(128, 64, 8, "turns"),
    Tile(128, 256, 4, "together", "paired"),
    Tile(128, 128, 6, "turns", "paired"),
)

RATES = {
    "hopper 128x256 together": 1650.0,
    "hopper 256x128 together": 1650.0,
    "hopper 128x192 together": 1550.0,
    "hopper 128x192 turns": 1550.0,
    "hopper 128x128 turns": 1400.0,
    "hopper 128x64 turns": 950.0,
}
"""Products of two values that a multiprocessor makes in a clock while a long sum runs, of 2,048 at most. Predictions,
from rates published for an H100 with such tiles: nobody has measured these kernels. A tile without one computes only
where it is asked for by its name: pairs of blocks, until a card has said what they are worth."""

ENDINGS = {"plain": 18.0, "gelu": 60.0, "gelu_tanh": 35.0, "slope": 70.0, "slope_tanh": 50.0}
"""Clocks from the last product to the last store, for each sum of a thread. Guesses, from counts of instructions."""

ROUNDS = 4
"""Of tiles, for each block, that parts of sums may make: nearly even shares are worth more parts."""

MOST_SUMS = {"gelu": 128, "slope": 128, "slope_tanh": 128}
"""Of a thread, whose registers also hold what these endings compute, or what a result is multiplied by."""

FILL = 1500.0
"""Clocks from a block's first instruction to its first product; a guess."""


def plans(problem: Problem, card: Card, split: int | None = None) -> Iterator[Plan]:
    """Those that there are for a product; none where boxes cannot be had of its operands."""
    if card.capability != CAPABILITY or problem.dtype == "float32":
        return
    if not problem.copies or not problem.terms:
        return
    letters = "nt"[problem.a_turned] + "nt"[problem.b_turned]
    for tile in TILES:
        if tile.shared > card.shared:
            continue
        down, across = matmul_plan.tiles_of(problem, tile.rows * tile.cluster, tile.columns)
        tiles, at_once = problem.batch * down * across, card.processors // tile.cluster
        options = (
            [matmul_plan.cut(problem.terms, split, STEP)]
            if split
            else matmul_plan.splits(problem, tiles, STEP, card, ROUNDS)
        )
        for parts, chunk in options:
            last = "plain" if parts > 1 else problem.last
            if tile.sums > MOST_SUMS.get(last, tile.sums):
                continue
            yield Plan(
                "hopper", tile.name,
                " ".join(map(str, ("matmul_hopper", problem.dtype, *tile, *letters, last))),
                f"product_{problem.dtype}_{tile.rows}x{tile.columns}_{tile.groups}_{tile.blocks}_{letters}_{last}",
                (tile.rows, tile.columns, STEP), tile.stages, THREADS, tile.shared,
                min(tiles * parts, at_once) * tile.cluster, parts, chunk,
                seconds(problem, card, tile, -(-tiles * parts // max(at_once, 1)), parts, chunk),
            )  # fmt: skip


def seconds(problem: Problem, card: Card, tile: Tile, rounds: int, parts: int, chunk: int) -> float:
    """Predicted: so many tiles of a block, or the bytes, whichever takes longer; and the adding up of parts.

    A tile's products take as long as its operands take to come out of L2, at least.
    """
    if tile.name not in RATES:
        return math.inf
    has = matmul_plan.speed(card)
    brought = 2 * chunk * (tile.rows + tile.columns / tile.cluster)  # bytes, out of L2
    multiplying = max(tile.rows * tile.columns * chunk / RATES[tile.name], brought / has.cache)
    ending = tile.sums * ENDINGS["plain" if parts > 1 else problem.last]
    if tile.groups == "turns":
        clocks = rounds * max(multiplying, (multiplying + ending) / 2) + ending
    else:
        clocks = rounds * (multiplying + ending)
    moved, again = matmul_plan.traffic(problem, parts)
    adding = matmul_plan.SECOND_KERNEL + again / has.memory if parts > 1 else 0.0
    return max((FILL + clocks) / has.clock, moved / has.memory) + adding


def maps(
    problem: Problem, tile: tuple[int, int, int], cluster: int, o: Operands
) -> tuple[TensorMap, TensorMap]:
    """Those of a and b, for blocks of a cluster of so many, which share b.

    Where terms lie side by side, a box has STEP of them and all rows (or columns, of b) of a tile; else it has STEP
    rows (or columns) and STEP terms, and there are as many boxes as a tile needs. Blocks that share b bring half each.
    """
    rows, columns, terms = problem.rows, problem.columns, problem.terms
    stored_a = (terms, rows) if problem.a_turned else (rows, terms)
    stored_b = (columns, terms) if problem.b_turned else (terms, columns)
    return (
        _map(o.a, o.a_lies, problem.batch, stored_a, STEP if problem.a_turned else tile[0]),
        _map(
            o.b, o.b_lies, problem.batch, stored_b, tile[1] // cluster if problem.b_turned else STEP
        ),
    )


def _map(a: Array, lies: Layout, batch: int, stored: tuple[int, int], high: int) -> TensorMap:
    shape = (batch if lies.step else 1, *stored)
    strides = (lies.step * a.itemsize, lies.pitch * a.itemsize)
    return tensor_map.of_matrices(cuda.address(a), a.dtype.name, shape, strides, (high, STEP))


def start(plan: Plan, problem: Problem, o: Operands) -> None:
    """Launch the kernel, and the one that adds up parts if there are some."""
    result, parts = matmul_cuda.result_of(plan, problem, o)
    (rows, columns, _), cluster = plan.tile, 2 if plan.name.endswith(" paired") else 1
    down, across = matmul_plan.tiles_of(problem, rows * cluster, columns)
    cuda.launch(
        plan.file, plan.kernel, plan.blocks, plan.threads,
        *map(tensor_map.encoded, maps(problem, plan.tile, cluster, o)), result,
        down, across, problem.batch, plan.split, -(-problem.terms // STEP), plan.chunk // STEP,
        int(o.a_lies.step > 0), int(o.b_lies.step > 0),
        shared=plan.shared,
    )  # fmt: skip
    if parts is not None:
        matmul_cuda.add_parts(problem, plan.split, result)


matmul_plan.add("hopper", matmul_plan.Tier(plans, start))
