"""Cross-entropy of rows of logits with labels.

With smoothing e the target is 1 - e at the label plus e / V everywhere (Szegedy et al., 2016, section 7).
"""

from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import cut, exponential, is_float, largest, parallel, plus
from .registry import Kernel
from .threads import LEAST

BLOCK = 1 << 11
"""Logits of a row that compiled code takes at once: 8 kB of float32, which the nearest cache holds."""


@Kernel
def cross_entropy_forward(
    logits_RV: Array, labels_R: Array, smoothing: float
) -> tuple[Array, Array]:
    """Loss of each row in nats, and the logarithm of its sum of exponentials as a column."""
    xp = namespace(logits_RV)
    top_R1 = logits_RV.max(axis=1, keepdims=True)
    e_RV = logits_RV - top_R1
    xp.exp(e_RV, out=e_RV)
    log_total_R1 = xp.log(e_RV.sum(axis=1, keepdims=True))
    at_label_R1 = xp.take_along_axis(logits_RV, labels_R[:, None], axis=1)
    target_R1 = (
        at_label_R1
        if not smoothing
        else ((1 - smoothing) * at_label_R1 + smoothing * logits_RV.mean(axis=1, keepdims=True))
    )
    return (log_total_R1 + (top_R1 - target_R1))[:, 0], log_total_R1 + top_R1


@Kernel
def cross_entropy_pullback(
    g_R: Array, logits_RV: Array, labels_R: Array, log_sum_R1: Array, smoothing: float
) -> Array:
    """Gradient of the logits: g (softmax - target), and exactly 0 where g is 0."""
    xp = namespace(logits_RV)
    g_RV = logits_RV - log_sum_R1
    xp.exp(g_RV, out=g_RV)
    if smoothing:
        g_RV -= smoothing / logits_RV.shape[1]
    g_RV[xp.arange(len(labels_R)), labels_R] -= 1 - smoothing
    g_RV *= g_R[:, None]
    unused = g_R == 0
    if unused.any():
        g_RV[unused] = 0
    return g_RV


@Kernel
def cross_entropy_in_place(
    logits_RV: Array,
    losses_R: Array,
    labels_R: Array,
    share_R: Array,
    smoothing: float,
    gradient: bool,
) -> None:
    """Write the loss of each row, and turn its logits into their gradient: share (softmax - target).

    A row whose share is 0 has loss 0 and gradient 0, whatever its logits. If no gradient is asked for, nothing is said
    of what becomes of the logits; the losses are the same to the last bit.
    """
    xp = namespace(logits_RV)
    losses, log_sum = cross_entropy_forward.definition(logits_RV, labels_R, smoothing)
    losses_R[...] = xp.where(share_R == 0, losses.dtype.type(0), losses)
    if gradient:
        logits_RV[...] = cross_entropy_pullback.definition(
            share_R, logits_RV, labels_R, log_sum, smoothing
        )


@Kernel
def cross_entropy_total(losses_R: Array, share_R: Array) -> Array:
    """The sum of losses, each times its share, added up in float64."""
    total: Array = (losses_R.astype(np.float64) * share_R).sum()
    return total.astype(losses_R.dtype)


def _sum_row(row: Any, tops: Any) -> Any:
    """The largest value of a row, and the sum of exponentials of what the others are less.

    One block at a time, which is then in the nearest cache for its second visit. With tops, exponentials take the place
    of the values, each of what the value is less than the largest one up to the end of its block, kept in tops.
    """
    kind = row.dtype.type
    low = kind(-np.inf)
    top, base, total = low, kind(0), kind(0)
    for block in range((row.size + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        values = cut(row, start, min(row.size - start, BLOCK))
        here = largest(values)
        if here > top:
            total *= exponential(top - here)
            top = base = here
        for j in range(values.size):
            e = exponential(values[j] - base)
            total = plus(total, e)
            if tops is not None:
                values[j] = e
        if tops is not None:
            tops[block] = base
    return top, total


def _target(row: Any, label: int, smoothing: Any) -> Any:
    """What the loss takes from the logarithm of the sum."""
    kind = row.dtype.type
    target = row[label]
    if smoothing != kind(0):
        total = kind(0)
        for j in range(row.size):
            total = plus(total, row[j])
        target = (kind(1) - smoothing) * target + smoothing * (total / kind(row.size))
    return target


def _forward_part(
    team: Any, part: int, start: int, stop: int,
    logits: Any, labels: Any, smoothing: Any, losses: Any, log_sum: Any,
) -> None:  # fmt: skip
    for r in range(start, stop):
        row = cut(logits, r * logits.shape[1], logits.shape[1])
        top, total = _sum_row(row, None)
        log_total = np.log(total)
        log_sum[r, 0] = log_total + top
        losses[r] = log_total + (top - _target(row, labels[r], smoothing))


def _pullback_part(
    team: Any, part: int, start: int, stop: int,
    g: Any, logits: Any, labels: Any, log_sum: Any, smoothing: Any, out: Any,
) -> None:  # fmt: skip
    kind = logits.dtype.type
    each, rest = smoothing / kind(logits.shape[1]), kind(1) - smoothing
    for r in range(start, stop):
        row, made = logits[r], out[r]
        by, less, at = g[r], log_sum[r, 0], labels[r]
        if by == kind(0):
            made[:] = kind(0)
            continue
        for j in range(row.size):
            made[j] = (exponential(row[j] - less) - each) * by
        # after the difference, so that 1 - 1 is exactly 0
        made[at] = (exponential(row[at] - less) - each - rest) * by


def _in_place_part(
    team: Any, part: int, start: int, stop: int,
    logits: Any, losses: Any, labels: Any, shares: Any, smoothing: Any, gradient: bool,
) -> None:  # fmt: skip
    kind = logits.dtype.type
    V = logits.shape[1]
    each, rest = smoothing / kind(V), kind(1) - smoothing
    tops = np.empty((V + BLOCK - 1) // BLOCK, logits.dtype)
    for r in range(start, stop):
        row, by, at = cut(logits, r * V, V), shares[r], labels[r]
        if by == kind(0):
            for j in range(V):
                row[j] = kind(0)
            losses[r] = kind(0)
            continue
        target = _target(row, at, smoothing)
        top, total = _sum_row(row, tops)
        losses[r] = np.log(total) + (top - target)
        if not gradient:
            continue
        at_label = row[at] * (exponential(tops[at // BLOCK] - top) / total) - each - rest
        for block in range(tops.size):
            values = cut(row, block * BLOCK, min(V - block * BLOCK, BLOCK))
            factor = exponential(tops[block] - top) / total * by
            for j in range(values.size):
                values[j] = values[j] * factor - each * by
        row[at] = at_label * by


@cross_entropy_forward.variant("numba", library="numpy", when=lambda x, *_: is_float(x))
def _numba_forward() -> Any:
    """Each row stays in cache for its maximum and its sum; the exponentials are never stored."""
    run = parallel(_forward_part, _sum_row, _target)
    if run is None:
        return None

    def forward(logits_RV: Array, labels_R: Array, smoothing: float) -> tuple[Array, Array]:
        R, V = logits_RV.shape
        kind = logits_RV.dtype.type
        losses_R, log_sum_R1 = np.empty(R, kind), np.empty((R, 1), kind)
        rows = logits_RV, labels_R, kind(smoothing), losses_R, log_sum_R1
        run(R, *rows, least=-(-LEAST // max(1, V)))
        return losses_R, log_sum_R1

    return forward


@cross_entropy_pullback.variant(
    "numba", library="numpy", when=lambda g, x, _, log_sum, __: is_float(g, x, log_sum)
)
def _numba_pullback() -> Any:
    """One pass instead of six."""
    run = parallel(_pullback_part)
    if run is None:
        return None

    def pullback(
        g_R: Array, logits_RV: Array, labels_R: Array, log_sum_R1: Array, smoothing: float
    ) -> Array:
        out_RV = np.empty_like(logits_RV)
        rows = g_R, logits_RV, labels_R, log_sum_R1, out_RV.dtype.type(smoothing), out_RV
        run(len(g_R), *rows, least=-(-LEAST // max(1, logits_RV.shape[1])))
        return out_RV

    return pullback


@cross_entropy_in_place.variant(
    "numba", library="numpy", when=lambda x, losses, _, share, *__: is_float(x, losses, share)
)
def _numba_in_place() -> Any:
    """Each row stays in cache, and each exponential is computed once."""
    run = parallel(_in_place_part, _sum_row, _target)
    if run is None:
        return None

    def in_place(
        logits_RV: Array,
        losses_R: Array,
        labels_R: Array,
        share_R: Array,
        smoothing: float,
        gradient: bool,
    ) -> None:
        R, V = logits_RV.shape
        rows = logits_RV, losses_R, labels_R, share_R, logits_RV.dtype.type(smoothing)
        run(R, *rows, gradient, least=-(-LEAST // max(1, V)))

    return in_place


CUDA_THREADS = 512
"""Of a block that has a row; as in cross_entropy.cu."""


def _cuda_takes(logits_RV: Array, labels_R: Array) -> bool:
    return logits_RV.size > 0 and cuda.known(logits_RV) and labels_R.dtype.kind in "iu"


def _is_pitched(logits_RV: Array) -> bool:
    """Whether values lie side by side in each row, wherever the next row begins."""
    pitch, step = logits_RV.strides
    return step == logits_RV.itemsize and pitch >= logits_RV.shape[1] * step


def _as(values: Array, dtype: Any) -> Array:
    return namespace(values).ascontiguousarray(values, dtype)


@cross_entropy_forward.variant(
    "cuda", library="cupy", when=lambda x, labels, _: _cuda_takes(x, labels)
)
def _cuda_forward() -> Any:
    """A block for each row, in one visit; results are float32, whatever logits are stored as."""

    def forward(logits_RV: Array, labels_R: Array, smoothing: float) -> tuple[Array, Array]:
        R, V = logits_RV.shape
        (logits_RV,) = cuda.whole(logits_RV)
        losses_R, log_sum_R1 = (cuda.empty(logits_RV, n, np.float32) for n in ((R,), (R, 1)))
        cuda.launch(
            "cross_entropy", f"cross_entropy_forward_{logits_RV.dtype.name}", R, CUDA_THREADS,
            logits_RV, _as(labels_R, np.int64), float(smoothing), losses_R, log_sum_R1, V,
        )  # fmt: skip
        return losses_R, log_sum_R1

    return forward if cuda.usable() else None


@cross_entropy_pullback.variant(
    "cuda", library="cupy", when=lambda g, x, labels, *_: _cuda_takes(x, labels)
)
def _cuda_pullback() -> Any:
    """A block for each row, in one visit."""

    def pullback(
        g_R: Array, logits_RV: Array, labels_R: Array, log_sum_R1: Array, smoothing: float
    ) -> Array:
        R, V = logits_RV.shape
        (logits_RV,) = cuda.whole(logits_RV)
        out_RV = cuda.empty(logits_RV, (R, V))
        cuda.launch(
            "cross_entropy", f"cross_entropy_pullback_{out_RV.dtype.name}", R, CUDA_THREADS,
            _as(g_R, np.float32), logits_RV, _as(labels_R, np.int64), _as(log_sum_R1, np.float32),
            float(smoothing), out_RV, V,
        )  # fmt: skip
        return out_RV

    return pullback if cuda.usable() else None


@cross_entropy_in_place.variant(
    "cuda",
    library="cupy",
    when=lambda x, losses, labels, *_: (
        _cuda_takes(x, labels)
        and _is_pitched(x)
        and losses.dtype.name == "float32"
        and losses.flags.c_contiguous
    ),
)
def _cuda_in_place() -> Any:
    """A block for each row, in two visits, the second out of the cache; losses are float32."""

    def in_place(
        logits_RV: Array,
        losses_R: Array,
        labels_R: Array,
        share_R: Array,
        smoothing: float,
        gradient: bool,
    ) -> None:
        R, V = logits_RV.shape
        cuda.launch(
            "cross_entropy", f"cross_entropy_in_place_{logits_RV.dtype.name}", R, CUDA_THREADS,
            logits_RV, logits_RV.strides[0] // logits_RV.itemsize, losses_R, _as(labels_R, np.int64),
            _as(share_R, np.float32), float(smoothing), int(gradient), V,
        )  # fmt: skip

    return in_place if cuda.usable() else None


@cross_entropy_total.variant(
    "cuda",
    library="cupy",
    when=lambda losses, share: cuda.takes(losses, share) and losses.dtype.name == "float32",
)
def _cuda_total() -> Any:
    """One block, and nothing is read by the host."""

    def total(losses_R: Array, share_R: Array) -> Array:
        found = cuda.empty(losses_R, ())
        numbers = losses_R, share_R, found, losses_R.size
        cuda.launch("cross_entropy", "cross_entropy_total", 1, CUDA_THREADS, *numbers)
        return found

    return total if cuda.usable() else None
