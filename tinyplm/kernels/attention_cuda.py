"""Softmax attention on a card: its launches. How it is computed is planned in attention_plan.py.

Values of 16 bits are multiplied by tensor cores, floats thread by thread (attention.cu, attention_pullback.cu). All is
read and written where it lies, whatever its strides, so that the parts of a packed projection are neither copied nor
turned. Nothing is added atomically: the same bits come out every time.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..backend import namespace
from ..types import Array
from . import attention_plan as plan
from . import cuda
from .attention import Kept, Rules, attention_forward, attention_pullback

SIZES = np.dtype([("batch", "i8"), ("heads", "i8"), ("queries", "i8"), ("keys", "i8")])
"""As in attention_sums.cu."""
STEPS = np.dtype([("batch", "i8"), ("head", "i8"), ("row", "i8"), ("key", "i8")])
"""As in attention_mask.cu."""


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


def packed_mask(mask: Array | None, S: int) -> Mask:
    """A mask of four axes, which broadcast to S keys, as bits."""
    if mask is None:
        return Mask(None, None, (0, 0, 0))
    B, H, T, _ = mask.shape
    rows, count = B * H * T, -(-S // 32)
    words, bounds = (cuda.empty(mask, (rows, n), np.uint32) for n in (count, 2))
    blocks = -(-rows // (cuda.THREADS // 32))
    cuda.launch(
        "attention_mask", "attention_mask", blocks, cuda.THREADS,
        mask, _steps(mask), rows, H, T, S, words, bounds,
    )  # fmt: skip
    place = count * H * T * (B > 1), count * T * (H > 1), count * (T > 1)
    return Mask(words, bounds if H == T == 1 else None, place)


def _steps(mask: Array | None) -> Any:
    """Bytes from one to the next of each axis, none of one of length one."""
    found = np.zeros(1, STEPS)
    if mask is not None:
        found[0] = tuple(s * (n > 1) for s, n in zip(mask.strides, mask.shape, strict=True))
    return found


def _biases(bias: Array | None) -> tuple[Array | None, Array | None]:
    """A dense one, and one by difference in float32."""
    if bias is None or bias.ndim == 4:
        return bias, None
    return None, namespace(bias).ascontiguousarray(bias, np.float32)


def _start(launch: plan.Launch, heads: int, rows: int, *arguments: Any) -> None:
    blocks = launch.blocks(heads, rows)
    cuda.launch(launch.file, launch.kernel, blocks, plan.BLOCK, *arguments, shared=launch.shared)


@attention_forward.variant(
    "cuda",
    library="cupy",
    when=lambda q, k, v, bias, rules, keep: (
        not keep
        and plan.fits(q, k, v)
        and plan.bias_fits(bias, q)
        and (
            _is_decoded(q, rules)
            or plan.has_room(plan.forward(plan.kind_of(q, bias, rules), q.shape[2]))
        )
    ),
)
def _forward() -> Any:
    """No scores in memory: of each query the logarithm of its sum is kept, infinity where it saw no key."""

    def forward(q: Array, k: Array, v: Array, bias: Array | None, rules: Rules, keep: bool) -> Kept:
        B, H, T, K = q.shape
        y = cuda.empty(q, (B, T, H, K)).swapaxes(1, 2)
        if _is_decoded(q, rules):
            return decode(q, k, v, bias, rules, y)
        log_sum = cuda.empty(q, (B * H * T,), np.float32)
        mask, kind = packed_mask(rules.mask, k.shape[2]), plan.kind_of(q, bias, rules, q, k, v, y)
        problem = plan.problem(q, k, rules, bias, v=v, y=y)
        problem["mask"] = mask.place
        seed = cuda.seed_arguments(rules.seed)
        given = q, k, v, *_biases(bias), mask.words, mask.bounds
        _start(plan.forward(kind, T), B * H, T, *given, y, log_sum, *seed, problem)
        return Kept(y, None, log_sum)

    return forward if cuda.usable() else None


def _is_decoded(q: Array, rules: Rules) -> bool:
    """Whether there are so few queries that a tile would be mostly empty."""
    return q.shape[2] <= plan.FEW and not rules.rate


def decode(q: Array, k: Array, v: Array, bias: Array | None, rules: Rules, y: Array) -> Kept:
    """The result of a few queries, into y: pieces of the keys side by side, without dropout."""
    (B, H, T, K), S = q.shape, k.shape[2]
    kind = plan.kind_of(q, bias, rules, q, k, v)
    way = plan.decoding(kind, K, B * H, T, S, rules.reach(T, S)[0])
    sums = cuda.empty(q, (B * H, way.pieces, T, 2), np.float32)
    means = cuda.empty(q, (B * H, way.pieces, T, K), np.float32)
    log_sum = cuda.empty(q, (B * H * T,), np.float32)
    problem = plan.problem(q, k, rules, bias, v=v, y=y)
    cuda.launch(
        way.file, f"attention_decode_{way.type}", B * H * way.pieces, plan.BLOCK,
        q, k, v, *_biases(bias), rules.mask, _steps(rules.mask), sums, means,
        way.pieces, way.first, way.length, problem,
    )  # fmt: skip
    cuda.launch(
        way.file, f"attention_join_{way.type}", -(-B * H * T * K // plan.BLOCK), plan.BLOCK,
        sums, means, y, log_sum, way.pieces, problem,
    )  # fmt: skip
    return Kept(y, None, log_sum)


@attention_pullback.variant(
    "cuda",
    library="cupy",
    when=lambda g, g_p, q, k, v, bias, rules, found, into: (
        g_p is None
        and found.log_sum is not None
        and plan.fits(q, k, v, g, found.y, *into)
        and plan.bias_fits(bias, q)
        and plan.has_room(
            *(make(plan.kind_of(q, bias, rules)) for make in (plan.keys, plan.queries))
        )
    ),
)
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
        (B, H, T, _K), S, (gq, gk, gv) = q.shape, k.shape[2], into
        mask, kind = packed_mask(rules.mask, S), plan.kind_of(q, bias, rules, q, k, v, g, *into)
        numbers = _numbers(g, found, 1.0 if kind.extras & plan.DENSE else 1 / math.log(2))
        problem = plan.problem(q, k, rules, bias, v=v, g=g, gq=gq, gk=gk, gv=gv)
        problem["mask"], problem["pitch"] = mask.place, numbers.shape[2]
        seed = cuda.seed_arguments(rules.seed)
        given = g, q, k, v, *_biases(bias), mask.words, mask.bounds, numbers
        _start(plan.keys(kind), B * H, S, *given, gk, gv, *seed, problem)

        launch = plan.queries(kind)
        sums = _Sums(q, S, bias, launch.tiles)
        problem["together"] = sums.together
        arrays = gq, sums.pairs, sums.direct, sums.table
        _start(launch, sums.runs * H, T, *given, *arrays, *seed, problem)
        return sums.result(bias)

    return pullback if cuda.usable() else None


def _numbers(g: Array, found: Kept, factor: float) -> Array:
    """Two of each query, (2, B H, T or more) in float32: log_sum times a factor, and the sum of y times gradient."""
    y = found.y
    B, H, T, K = y.shape
    pitch = -(-T // plan.BLOCK) * plan.BLOCK
    result = cuda.empty(y, (2, B * H, pitch), np.float32)
    groups = 0 if plan.is_odd(g, y) else K * y.dtype.itemsize // 16
    places = (np.array([plan.place(a)], plan.PLACE) for a in (g, y))
    blocks = -(-8 * B * H * pitch // cuda.THREADS)
    cuda.launch(
        "attention_sums", f"attention_numbers_{y.dtype.name}", blocks, cuda.THREADS,
        g, y, found.log_sum, *places, factor, result, B, H, T, pitch, K, groups,
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

    def __init__(self, q: Array, S: int, bias: Array | None, tiles: plan.Tiles) -> None:
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
                self.together = -(-B // min(B, -(-plan.ENOUGH // blocks)))
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
