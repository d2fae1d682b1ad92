"""Softmax attention on a card: which kernel computes a problem, and its launches. See docs/decisions/0014.

Values of 16 bits are multiplied by tensor cores (attention.cu, attention_pullback.cu). Everything is read and written
where it lies, whatever its strides, so that the parts of a packed projection are neither copied nor turned. Nothing is
added atomically: the same bits come out every time.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .attention import Kept, Rules, attention_forward, attention_pullback
from .dropout import scale
from .philox import threshold

BLOCK = 128
"""Threads of a block; as in attention_tiles.cu."""
WIDEST = 256
"""Values of a head at most."""
CACHED = 16 << 20
"""Bytes of keys and values that the heads of a cluster read; a card's second cache is twice as large or larger."""

DENSE, BY_DIFFERENCE, DROPPED, ODD, SCALED = 1, 2, 4, 8, 16
"""What a kernel can do besides: a bias of either kind, dropout, rows that are not whole groups of 16 bytes, a scale
that is not positive. As in attention_tiles.cu."""
ENOUGH = 528
"""Blocks that keep a large card busy: four for each multiprocessor of an H200."""

PLACE = np.dtype([("batch", "i8"), ("head", "i8"), ("row", "i8")], align=True)
_ARRAYS = ("q", "k", "v", "y", "g", "gq", "gk", "gv", "mask", "bias")
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
    "together",
    "cluster",
)
PROBLEM = np.dtype(
    [
        *((name, PLACE) for name in _ARRAYS),
        *((name, "i4") for name in _COUNTS),
        ("scale", "f4"),
        ("more", "f4"),
        ("threshold", "u4"),
    ],
    align=True,
)
"""As in attention_tiles.cu."""
SIZES = np.dtype([("batch", "i8"), ("heads", "i8"), ("queries", "i8"), ("keys", "i8")])
"""As in attention_sums.cu."""
STEPS = np.dtype([("batch", "i8"), ("head", "i8"), ("row", "i8"), ("key", "i8")])
"""As in attention_mask.cu."""


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


def head_size(width: int) -> int:
    """Values that a kernel has room for in a head of so many."""
    return -(-width // 16) * 16 if width <= 128 else WIDEST


def forward_tiles(size: int, queries: int, extras: int) -> Tiles:
    """Of the forward pass, for a size of heads and a number of queries: rows are queries, columns keys."""
    tall = 2 if size <= 64 and queries > 64 else 1
    return Tiles(tall, 32 if size > 128 or (tall == 2 and extras & DENSE) else 64)


def keys_tiles(size: int, extras: int) -> Tiles:
    """Of the pullback for keys and values: rows are keys, columns queries."""
    return Tiles(2 if size <= 64 and not extras & DENSE else 1, 32 if size > 128 else 64)


def queries_tiles(size: int, extras: int) -> Tiles:
    """Of the pullback for queries."""
    return Tiles(2 if size <= 64 and not extras & DENSE else 1, 32 if size > 128 else 64)


def shared_bytes(size: int, tiles: Tiles, by_difference: bool) -> int:
    """Of the forward pass: rows, and two kinds of columns twice; differences twice."""
    tables = 2 * 4 * (tiles.rows + tiles.wide) if by_difference else 0
    return 2 * size * (tiles.rows + 4 * tiles.wide) + tables


def keys_shared(size: int, tiles: Tiles, by_difference: bool) -> int:
    """As shared_bytes, with a second kind of rows and two numbers of each column."""
    return shared_bytes(size, tiles, by_difference) + 2 * size * tiles.rows + 4 * 4 * tiles.wide


def queries_shared(size: int, tiles: Tiles, by_difference: bool) -> int:
    """As shared_bytes, with a second kind of rows and 32 scores of each row, which differences are added up from."""
    scores = 4 * tiles.rows * (32 + 8) if by_difference else 0
    return shared_bytes(size, tiles, by_difference) + 2 * size * tiles.rows + scores


def is_scaled(extras: int) -> bool:
    """Whether scores are scaled before the exponential does it."""
    return bool(extras & (DENSE | BY_DIFFERENCE | SCALED))


def column_parts(size: int) -> int:
    """Blocks that share the columns of the gradients of keys and values, which one cannot hold."""
    return 2 if size > 128 else 1


class Mask(NamedTuple):
    """A mask as kernels read it.

    Attributes:
        words: 32 keys each, (rows, words of a row); None where all is seen.
        bounds: first key seen and the one behind the last, of each batch row, where the mask is of keys alone.
        place: words from one batch row, head and query to the next.
    """

    words: Array | None
    bounds: Array | None
    place: tuple[int, int, int]


def packed_mask(mask: Array | None) -> Mask:
    """A mask of four axes as bits."""
    if mask is None:
        return Mask(None, None, (0, 0, 0))
    B, H, T, S = mask.shape
    rows, count = B * H * T, -(-S // 32)
    words = cuda.empty(mask, (rows, count), np.uint32)
    bounds = cuda.empty(mask, (rows, 2), np.uint32)
    steps = np.array([mask.strides], STEPS)
    blocks = -(-rows // (cuda.THREADS // 32))
    cuda.launch(
        "attention_mask", "attention_mask", blocks, cuda.THREADS, mask, steps, rows, H, T, S, words, bounds
    )  # fmt: skip
    place = count * H * T * (B > 1), count * T * (H > 1), count * (T > 1)
    return Mask(words, bounds if H == T == 1 else None, place)


def _place(a: Array | None) -> tuple[int, ...]:
    """Values from one batch row, head and row to the next."""
    if a is None:
        return (0, 0, 0)
    return tuple(
        s // a.dtype.itemsize if n > 1 else 0 for s, n in zip(a.strides[:3], a.shape, strict=False)
    )


def _is_odd(*arrays: Array) -> bool:
    """Whether some rows are not whole groups of 16 bytes."""
    return any(
        cuda.address(a) % 16
        or a.shape[3] * a.dtype.itemsize % 16
        or any(s % 16 for s, n in zip(a.strides[:3], a.shape, strict=False) if n > 1)
        for a in arrays
    )


def _problem(
    q: Array, k: Array, rules: Rules, mask: Mask, bias: Array | None, arrays: dict[str, Array]
) -> Array:
    """The structure that kernels are given."""
    (B, H, T, K), S = q.shape, k.shape[2]
    problem = np.zeros(1, PROBLEM)
    dense = bias if bias is not None and bias.ndim == 4 else None
    for name, a in {**arrays, "bias": dense}.items():
        problem[name] = _place(a)
    problem["mask"] = mask.place
    back, ahead = rules.reach(T, S)
    numbers = {
        "batch": B, "heads": H, "queries": T, "keys": S, "width": K, "back": min(back, S + T),
        "ahead": min(ahead, S + T), "words": -(-S // 32), "together": 1,
        "bias_key": int(dense is not None and dense.shape[3] > 1),
        "cluster": max(1, min(B * H, CACHED // (2 * S * K * q.dtype.itemsize))),
        "scale": rules.scale, "more": scale(rules.rate) if rules.rate else 1,
        "threshold": threshold(rules.rate) if rules.rate else 0,
    }  # fmt: skip
    for name, value in numbers.items():
        problem[name] = value
    return problem


def _fits(*arrays: Array) -> bool:
    """Whether these are halves of one type, with rows of one width without gaps."""
    kind, width = arrays[0].dtype, arrays[0].shape[3]
    return kind.name in ("float16", "bfloat16") and 1 <= width <= WIDEST and all(
        a.dtype == kind
        and a.shape[3] == width
        and a.size > 0
        and (a.strides[3] == kind.itemsize or width == 1)
        for a in arrays
    )  # fmt: skip


def _bias_fits(bias: Array | None, q: Array) -> bool:
    """Whether a bias is one by difference, or dense and of the same type, its keys side by side."""
    if bias is None or bias.ndim == 2:
        return bias is None or bias.dtype.name in cuda.TYPES
    return bias.dtype == q.dtype and (bias.strides[3] == bias.dtype.itemsize or bias.shape[3] == 1)


def _takes(q: Array, k: Array, v: Array, bias: Array | None, rules: Rules, keep: bool) -> bool:
    return not keep and _fits(q, k, v) and _bias_fits(bias, q)


def _biases(bias: Array | None) -> tuple[Array | None, Array | None]:
    """A dense one, and one by difference in float32."""
    if bias is None:
        return None, None
    if bias.ndim == 4:
        return bias, None
    return None, namespace(bias).ascontiguousarray(bias, np.float32)


def _extras(bias: Array | None, rules: Rules, *arrays: Array) -> int:
    """What a kernel has to be able to do besides."""
    found = 0
    if bias is not None:
        found |= DENSE if bias.ndim == 4 else BY_DIFFERENCE
    if rules.rate:
        found |= DROPPED
    if rules.scale <= 0:
        found |= SCALED
    return found | (ODD if _is_odd(*arrays) else 0)


@attention_forward.variant("cuda", library="cupy", when=_takes)
def _forward() -> Any:
    """No scores in memory: of each query the logarithm of its sum is kept, infinity where it saw no key."""

    def forward(q: Array, k: Array, v: Array, bias: Array | None, rules: Rules, keep: bool) -> Kept:
        B, H, T, K = q.shape
        y = cuda.empty(q, (B, T, H, K)).swapaxes(1, 2)
        log_sum = cuda.empty(q, (B * H * T,), np.float32)
        mask, (dense, table) = packed_mask(rules.mask), _biases(bias)
        problem = _problem(q, k, rules, mask, bias, {"q": q, "k": k, "v": v, "y": y})
        extras, size = _extras(bias, rules, q, k, v, y), head_size(K)
        tiles = forward_tiles(size, T, extras)
        cuda.launch(
            f"attention {q.dtype.name} {size} {tiles.tall} {tiles.wide} {extras}", "attention_forward",
            B * H * -(-T // tiles.rows), BLOCK,
            q, k, v, dense, table, mask.words, mask.bounds, y, log_sum, *cuda.seed_arguments(rules.seed), problem,
            shared=shared_bytes(size, tiles, table is not None),
        )  # fmt: skip
        return Kept(y, None, log_sum)

    return forward if cuda.usable() else None


def _takes_back(
    g: Array,
    g_p: Array | None,
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    rules: Rules,
    found: Kept,
    into: tuple[Array, Array, Array],
) -> bool:
    return (
        g_p is None
        and found.log_sum is not None
        and _fits(q, k, v, g, found.y, *into)
        and _bias_fits(bias, q)
    )


@attention_pullback.variant("cuda", library="cupy", when=_takes_back)
def _pullback() -> Any:
    """Probabilities are made again, by blocks of keys and by blocks of queries."""

    def pullback(
        g: Array,
        _: Array | None,
        q: Array,
        k: Array,
        v: Array,
        bias: Array | None,
        rules: Rules,
        found: Kept,
        into: tuple[Array, Array, Array],
    ) -> Array | None:
        (B, H, T, K), S, (gq, gk, gv) = q.shape, k.shape[2], into
        mask, (dense, table) = packed_mask(rules.mask), _biases(bias)
        arrays = {"q": q, "k": k, "v": v, "g": g, "gq": gq, "gk": gk, "gv": gv}
        problem = _problem(q, k, rules, mask, bias, arrays)
        extras, size = _extras(bias, rules, *arrays.values()), head_size(K)
        seed = cuda.seed_arguments(rules.seed)
        numbers = _numbers(g, found, is_scaled(extras))
        problem["pitch"] = numbers.shape[2]
        given = g, q, k, v, dense, table, mask.words, mask.bounds, numbers

        tiles, parts = keys_tiles(size, extras), column_parts(size)
        cuda.launch(
            f"attention_pullback keys {q.dtype.name} {size} {tiles.tall} {tiles.wide} {parts} {extras}",
            "attention_pullback_keys", B * H * parts * -(-S // tiles.rows), BLOCK,
            *given, gk, gv, *seed, problem, shared=keys_shared(size, tiles, table is not None),
        )  # fmt: skip

        tiles = queries_tiles(size, extras)
        sums = _Sums(q, S, bias, tiles)
        problem["together"] = sums.together
        cuda.launch(
            f"attention_pullback queries {q.dtype.name} {size} {tiles.tall} {tiles.wide} {extras}",
            "attention_pullback_queries",
            sums.runs * H * -(-T // tiles.rows), BLOCK,
            *given, gq, sums.pairs, sums.direct, sums.table, *seed, problem,
            shared=queries_shared(size, tiles, table is not None),
        )  # fmt: skip
        return sums.result(bias)

    return pullback if cuda.usable() else None


def _numbers(g: Array, found: Kept, scaled: bool) -> Array:
    """Two of each query, (2, B H, T or more) in float32: log_sum, and the sum over its row of y times the gradient.

    The first is that of powers of two where scores are not scaled before.
    """
    y = found.y
    B, H, T, K = y.shape
    pitch = -(-T // BLOCK) * BLOCK
    result = cuda.empty(y, (2, B * H, pitch), np.float32)
    groups = 0 if _is_odd(g, y) else K * y.dtype.itemsize // 16
    places = (np.array([_place(a)], PLACE) for a in (g, y))
    blocks = -(-8 * B * H * pitch // cuda.THREADS)
    cuda.launch(
        "attention_sums", f"attention_numbers_{y.dtype.name}", blocks, cuda.THREADS,
        g, y, found.log_sum, *places, 1.0 if scaled else 1 / math.log(2), result, B, H, T, pitch, K, groups,
    )  # fmt: skip
    return result


class _Sums:
    """Where the gradient of a bias is added up, in float32: for runs of batch rows, which are added in order at last.

    Attributes:
        together: batch rows of a run.
        runs: how many there are.
        pairs: of a dense bias, for each score.
        direct: the gradient itself, where no two scores add to one value.
        table: of a bias by difference, for each warp's queries.
    """

    def __init__(self, q: Array, S: int, bias: Array | None, tiles: Tiles) -> None:
        B, H, T, _ = self.shape = (*q.shape[:3], S)
        self.together, self.rows = 1, tiles.rows // 4
        self.pairs = self.direct = self.table = None
        if bias is not None and bias.ndim == 2:
            self.table = cuda.empty(
                q, (B, H, -(-T // self.rows), S + self.rows - 1), np.float32, zeros=True
            )
        elif bias is not None and bias.shape == self.shape:
            self.direct = cuda.empty(q, bias.shape, zeros=True)
        elif bias is not None:
            if bias.shape[0] == 1:
                blocks = H * -(-T // tiles.rows)
                self.together = -(-B // min(B, -(-ENOUGH // blocks)))
            self.pairs = cuda.empty(q, (self.runs, H, T, S), np.float32, zeros=True)

    @property
    def runs(self) -> int:
        return -(-self.shape[0] // self.together)

    def result(self, bias: Array | None) -> Array | None:
        """The gradient, in the shape and type of the bias."""
        if bias is None or self.direct is not None:
            return self.direct
        result, (_, H, T, S) = cuda.empty(bias, bias.shape), self.shape
        size = np.array([(self.runs, H, T, S)], SIZES)
        if self.table is not None:
            self._launch(
                "differences", H * -(-(S + T - 1) // 32), self.table, result, size, self.rows
            )
        else:
            to = np.array([bias.shape], SIZES)
            self._launch("pairs", -(-result.size // cuda.THREADS), self.pairs, result, size, to)
        return result

    def _launch(
        self, what: str, blocks: int, given: Array | None, result: Array, *numbers: Any
    ) -> None:
        kernel = f"attention_add_{what}_{result.dtype.name}"
        cuda.launch("attention_sums", kernel, blocks, cuda.THREADS, given, result, *numbers)
