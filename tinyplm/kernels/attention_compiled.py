"""Softmax attention compiled: heads shared between threads, and a few queries at a time, whose scores stay in cache."""

import math
from typing import Any

import numpy as np

from ..types import Array
from .attention import Kept, Rules, are_few, attention_forward, attention_pullback, of_pairs
from .compiled import address, array_at, exponential_below, gemm, largest, parallel, plus
from .dropout import scale
from .philox import GROUP, philox, threshold
from .threads import LEAST, available, has_products, parts

ROWS = 128
"""Queries of a head that the compiled variants take at once; half of them with `causal`, which then leaves out more."""

LOW = (1 << 32) - 1
HALVES = np.empty(0, np.uint16)
"""What decisions of dropout are read as: two in a word, the lower half first, as processors have them in memory."""


def _softmax_row(row: Any) -> Any:
    """Turn scores into exponentials; their sum, and the largest score. Where there is nothing to see the sum is 0."""
    kind = row.dtype.type
    top, total = largest(row), kind(0)
    if top == kind(-np.inf):  # nothing was seen that is larger: minus infinities only, or NaN
        for j in range(row.size):
            row[j] = row[j] if row[j] != row[j] else kind(0)
            total = plus(total, row[j])
    else:
        for j in range(row.size):
            e = exponential_below(row[j] - top)
            row[j] = e
            total = plus(total, e)
    return total, top


def _adjust_row(row: Any, bias: Any, mask: Any, b: int, h: int, t: int, seen: int) -> None:
    """Add the bias to scores, and hide those that the mask hides."""
    hidden = row.dtype.type(-np.inf)
    if bias.size:
        if bias.strides[3] == row.itemsize:
            at = address(bias) + b * bias.strides[0] + h * bias.strides[1] + t * bias.strides[2]
            added = array_at(at, seen, row)
            for s in range(added.size):
                row[s] += added[s]
        else:
            for s in range(seen):
                row[s] += bias[b, h, t, s]
    if mask.size:
        for s in range(seen):
            row[s] = row[s] if mask[b, h, t, s] else hidden


def _draw(seed: int, unit: int, t: int, keys: int, drawn: Any) -> None:
    """Fill words with the decisions of `philox.kept` about a query's first keys: two in each, in the keys' order.

    They lie in the first half of the words; the second holds them by their place in a counter, as vectors make them.
    """
    groups = (keys + GROUP - 1) // GROUP
    own = drawn[drawn.size // 2 :]
    one, two = own[: 4 * groups], own[4 * groups : 8 * groups]
    three, four = own[8 * groups : 12 * groups], own[12 * groups : 16 * groups]
    for quad in range(one.size):
        one[quad], two[quad], three[quad], four[quad] = philox(
            unit, t, quad, 0, seed & LOW, seed >> 32
        )
    for i in range(4):
        words = own[4 * groups * i : 4 * groups * (i + 1)]
        for group in range(groups):
            for j in range(4):
                drawn[16 * group + 4 * i + j] = words[4 * group + j]


def _forward_part(
    team: Any, part: int, start: int, stop: int,
    q: Any, k: Any, v: Any, bias: Any, mask: Any, times: Any,
    back: Any, ahead: Any, bar: Any, more: Any, seed: Any, rows: Any, words: Any, scratch: Any, y: Any, p: Any,
    log_sum: Any,
) -> None:  # fmt: skip
    _, H, T, K = q.shape
    S, J, size, kind = k.shape[2], v.shape[3], q.itemsize, y.dtype.type
    own, drawn = scratch[part], words[part]
    shares, space = own[:rows], own[rows:]
    low = kind(-np.inf)
    for unit in range(start, stop):
        b, h = unit // H, unit % H
        q_at = address(q) + b * q.strides[0] + h * q.strides[1]
        v_at = address(v) + b * v.strides[0] + h * v.strides[1]
        y_at = address(y) + b * y.strides[0] + h * y.strides[1]
        k_at = address(k) + b * k.strides[0] + h * k.strides[1]
        for first in range(0, T, rows):
            last = min(first + rows, T)
            most = min(S, max(0, last - 1 + S - T + ahead))
            # Probabilities that are kept are made where they stay. Else rows are of whole vectors.
            width = S if p.size else -(-most // 16) * 16
            scores = address(p) + size * (unit * T + first) * S if p.size else address(space)
            gemm(
                team, space, False, True, last - first, most, K, times,
                q_at + first * q.strides[2], q.strides[2] // size, k_at, k.strides[2] // size,
                0, scores, width,
            )  # fmt: skip
            for t in range(first, last):
                row = array_at(scores + size * (t - first) * width, width, space)
                seen = min(S, max(0, t + S - T + ahead))
                for s in range(seen, width):
                    row[s] = low
                if bias.size or mask.size:
                    _adjust_row(row, bias, mask, b, h, t, seen)
                for s in range(min(seen, max(0, t + S - T - back + 1))):
                    row[s] = low
                total, top = _softmax_row(row)
                empty = total == 0
                share = kind(1) if empty else kind(1) / total
                if p.size:
                    for s in range(width):
                        row[s] *= share
                else:  # it is less work to scale the result
                    shares[t - first] = share
                    log_sum[unit * T + t] = -low if empty else top + kind(math.log(total))
                if bar:
                    _draw(seed, unit, t, seen, drawn)
                    halves = array_at(address(drawn), drawn.size, HALVES)
                    used = array_at(address(space) + size * (t - first) * width, width, space)
                    for s in range(seen):
                        used[s] = row[s] * (more if halves[s] >= bar else kind(0))
                    for s in range(seen, most):
                        used[s] = 0
            if most:
                gemm(
                    team, space, False, False, last - first, J, most, 1,
                    address(space) if bar else scores, width, v_at, v.strides[2] // size,
                    0, y_at + first * y.strides[2], y.strides[2] // size,
                )  # fmt: skip
                if not p.size:
                    for t in range(first, last):
                        row = array_at(y_at + t * y.strides[2], J, space)
                        share = shares[t - first]
                        for i in range(J):
                            row[i] *= share
            else:
                for t in range(first, last):
                    row = array_at(y_at + t * y.strides[2], J, space)
                    for i in range(J):
                        row[i] = 0


def _pullback_part(
    team: Any, part: int, start: int, stop: int,
    g: Any, q: Any, k: Any, v: Any, bias: Any, mask: Any, times: Any,
    back: Any, ahead: Any, bar: Any, more: Any, seed: Any, rows: Any, words: Any, scratch: Any, y: Any, p: Any,
    log_sum: Any, gq: Any, gk: Any, gv: Any, together: Any, g_bias: Any,
) -> None:  # fmt: skip
    B, H, T, K = q.shape
    S, J, size, kind = k.shape[2], v.shape[3], q.itemsize, y.dtype.type
    space, drawn = scratch[part], words[part]
    low = kind(-np.inf)
    # A bias is added to scores that are scaled already: its gradient comes before the scale.
    outer = kind(1) if g_bias.size else times
    # A row of a bias by difference begins one value before that of the query before.
    g_start, g_step = (0, S) if g_bias.shape[2] == T else (T - 1, -1)
    # An item is a head of some batch rows, one after the other: they add to the same gradient of the bias.
    for number in range(start * together, stop * together):
        item = number // together
        b, h = item // H * together + number % together, item % H
        if b >= B:
            continue
        unit = b * H + h
        q_at = address(q) + b * q.strides[0] + h * q.strides[1]
        k_at = address(k) + b * k.strides[0] + h * k.strides[1]
        y_at = address(y) + b * y.strides[0] + h * y.strides[1]
        g_at = address(g) + b * g.strides[0] + h * g.strides[1]
        gq_at = address(gq) + b * gq.strides[0] + h * gq.strides[1]
        gk_at = address(gk) + b * gk.strides[0] + h * gk.strides[1]
        gv_at = address(gv) + b * gv.strides[0] + h * gv.strides[1]
        v_at = address(v) + b * v.strides[0] + h * v.strides[1]
        for s in range(S):
            row = array_at(gk_at + s * gk.strides[2], K, space)
            for i in range(K):
                row[i] = 0
            row = array_at(gv_at + s * gv.strides[2], J, space)
            for i in range(J):
                row[i] = 0
        for first in range(0, T, rows):
            last = min(first + rows, T)
            most = min(S, max(0, last - 1 + S - T + ahead))
            count = last - first
            width = S if p.size else -(-most // 16) * 16
            scores = address(space)
            used = scores + size * count * width
            probabilities = address(p) + size * (unit * T + first) * S if p.size else used
            if most == 0:
                for t in range(first, last):
                    row = array_at(gq_at + t * gq.strides[2], K, space)
                    for i in range(K):
                        row[i] = 0
                continue
            if not p.size:
                gemm(
                    team, space, False, True, count, most, K, times,
                    q_at + first * q.strides[2], q.strides[2] // size, k_at, k.strides[2] // size,
                    0, used, width,
                )  # fmt: skip
            gemm(
                team, space, False, True, count, most, J, 1,
                g_at + first * g.strides[2], g.strides[2] // size, v_at, v.strides[2] // size,
                0, scores, width,
            )  # fmt: skip
            for t in range(first, last):
                row = array_at(probabilities + size * (t - first) * width, width, space)
                g_row = array_at(scores + size * (t - first) * width, width, space)
                seen = min(S, max(0, t + S - T + ahead))
                for s in range(seen, width):
                    g_row[s] = 0
                if not p.size:
                    for s in range(seen, width):
                        row[s] = low
                    if bias.size or mask.size:
                        _adjust_row(row, bias, mask, b, h, t, seen)
                    for s in range(min(seen, max(0, t + S - T - back + 1))):
                        row[s] = low
                    all_of_it = log_sum[unit * T + t]
                    for s in range(width):
                        row[s] = exponential_below(row[s] - all_of_it)
                g_y = array_at(g_at + t * g.strides[2], J, space)
                y_row = array_at(y_at + t * y.strides[2], J, space)
                along = kind(0)  # the sum over the row of p times its gradient
                for i in range(J):
                    along = plus(along, g_y[i] * y_row[i])
                if bar:
                    _draw(seed, unit, t, width, drawn)
                    halves = array_at(address(drawn), drawn.size, HALVES)
                    dropped = array_at(used + size * (t - first) * width, width, space)
                    for s in range(width):
                        factor = more if halves[s] >= bar else kind(0)
                        g_row[s] = outer * row[s] * (g_row[s] * factor - along)
                        dropped[s] = row[s] * factor
                else:
                    for s in range(width):
                        g_row[s] = outer * row[s] * (g_row[s] - along)
                if g_bias.size:
                    at = item * g_bias.shape[2] * g_bias.shape[3] + g_start + t * g_step
                    total = array_at(address(g_bias) + size * at, seen, space)
                    for s in range(total.size):
                        total[s] += g_row[s]
                    if times != 1:
                        for s in range(width):
                            g_row[s] *= times
            gemm(
                team, space, False, False, count, K, most, 1,
                scores, width, k_at, k.strides[2] // size,
                0, gq_at + first * gq.strides[2], gq.strides[2] // size,
            )  # fmt: skip
            gemm(
                team, space, True, False, most, K, count, 1,
                scores, width, q_at + first * q.strides[2], q.strides[2] // size,
                1, gk_at, gk.strides[2] // size,
            )  # fmt: skip
            gemm(
                team, space, True, False, most, J, count, 1,
                used if bar else probabilities, width, g_at + first * g.strides[2],
                g.strides[2] // size, 1, gv_at, gv.strides[2] // size,
            )  # fmt: skip


def _fits(*arrays: Array) -> bool:
    """Whether BLAS can take each head of each array: rows without gaps, one after the other."""
    kind = arrays[0].dtype.char
    return (
        kind in "fd"
        and has_products()
        and all(a.dtype.char == kind and a.size and _has_rows(a) for a in arrays)
    )


def _has_rows(a: Array) -> bool:
    step, last = a.strides[2:]
    return bool(
        (last == a.itemsize or a.shape[3] == 1)
        and step >= a.itemsize * a.shape[3]
        and step % a.itemsize == 0
    )


def _setting(rules: Rules, q: Array, k: Array, bias: Array | None) -> tuple[Any, ...]:
    """What both bodies want to know besides the arrays."""
    shape, kind = (*q.shape[:3], k.shape[2]), q.dtype.type
    pairs = None if bias is None else of_pairs(bias, shape)
    return (
        np.empty((0, 0, 0, 0), q.dtype) if pairs is None else np.broadcast_to(pairs, shape),
        np.empty((0, 0, 0, 0), bool) if rules.mask is None else np.broadcast_to(rules.mask, shape),
        kind(rules.scale),
        *rules.reach(q.shape[2], k.shape[2]),
        threshold(rules.rate) if rules.rate else 0,
        kind(scale(rules.rate)) if rules.rate else kind(1),
        rules.seed,
        min(q.shape[2], ROWS // 2 if rules.causal else ROWS),
    )


def _words(parts: int, keys: int, rules: Rules) -> Array:
    """Room for the decisions of dropout about one query, for each part; rows have up to 15 keys more."""
    return np.empty((parts, 32 * (-(-(keys + 15) // GROUP)) if rules.rate else 0), np.uint32)


def _sharing(q: Array, k: Array) -> dict[str, int]:
    """How heads are shared: those worth a thread's while, in twice as many parts as there are threads."""
    scores = q.shape[2] * k.shape[2]
    return {
        "least": -(-LEAST // (8 * scores)),
        "most": 2 * available(),
    }  # a score costs as eight values


@attention_forward.variant(
    "numba",
    library="numpy",
    when=lambda q, k, v, bias, *_: _fits(q, k, v) and (bias is None or bias.dtype == q.dtype),
)
def _numba_forward() -> Any:
    """Heads are shared between threads, and the scores of a few queries stay in a core's cache."""
    run = parallel(
        _forward_part,
        _softmax_row,
        _adjust_row,
        _draw,
        philox,
        strided=("q", "k", "v", "bias", "mask", "y"),
    )
    if run is None:
        return None

    def forward(q: Array, k: Array, v: Array, bias: Array | None, rules: Rules, keep: bool) -> Kept:
        (B, H, T, _), (S, J) = q.shape, v.shape[2:]
        y = np.empty((B, T, H, J), q.dtype).swapaxes(1, 2)
        keep = keep or are_few((B, H, T, S))
        p = np.empty((B, H, T, S) if keep else (0, 0, 0, 0), q.dtype)
        log_sum = np.empty(B * H * T, q.dtype)
        setting, sharing = _setting(rules, q, k, bias), _sharing(q, k)
        room = setting[-1] * (S + 16)
        scratch = np.empty((parts(B * H, **sharing), room), q.dtype)
        words = _words(len(scratch), S, rules)
        run(B * H, q, k, v, *setting, words, scratch, y, p.reshape(-1, S), log_sum, **sharing)
        return Kept(y, p if keep else None, log_sum)

    return forward


@attention_pullback.variant(
    "numba",
    library="numpy",
    when=lambda g, g_p, q, k, v, bias, rules, found, into: (
        g_p is None
        and (bias is None or bias.dtype == q.dtype)
        and found.log_sum is not None
        and _fits(g, q, k, v, found.y, *into)
    ),
)
def _numba_pullback() -> Any:
    """As forward; the sum over p times its gradient comes from y, so that a row is read once."""
    strided = ("g", "q", "k", "v", "bias", "mask", "y", "gq", "gk", "gv")
    run = parallel(_pullback_part, _adjust_row, _draw, philox, strided=strided)
    if run is None:
        return None

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
        (B, H, T, _), S = q.shape, k.shape[2]
        setting, sharing = _setting(rules, q, k, bias), _sharing(q, k)
        together = 1
        if bias is not None and (bias.ndim == 2 or bias.shape[0] == 1):
            together = -(-B // -(-sharing["most"] // H))  # no more sums than keep all threads busy
            sharing["least"] = -(-sharing["least"] // together)
        groups = -(-B // together)
        pairs = (1, S + T - 1) if bias is not None and bias.ndim == 2 else (T, S)
        g_bias = np.zeros((0 if bias is None else groups, H, *pairs), q.dtype)
        room = 2 * setting[-1] * (S + 15)
        scratch = np.empty((parts(groups * H, **sharing), room), q.dtype)
        words = _words(len(scratch), S, rules)
        p = np.empty((0, S), q.dtype) if found.p is None else found.p.reshape(-1, S)
        run(
            groups * H, g, q, k, v, *setting, words, scratch, found.y, p, found.log_sum, *into, together, g_bias,
            **sharing,
        )  # fmt: skip
        if bias is None:
            return None
        if bias.ndim == 2:
            return g_bias.sum(axis=(0, 2))
        axes = tuple(i for i, n in enumerate(bias.shape) if n != g_bias.shape[i])
        return g_bias.sum(axis=axes, keepdims=True) if axes else g_bias

    return pullback
