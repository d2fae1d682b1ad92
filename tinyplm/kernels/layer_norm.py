"""Layer and root-mean-square normalisation of rows, alone or of a sum of two, with the pullbacks.

A residual stream is added to and normalised at once: whoever reads the sum anyway for its mean might as well make it.
What is kept for the pullback are the rows themselves, and a mean and a scale for each; normalised rows are made again.
"""

from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda
from .compiled import is_float, parallel, plus
from .registry import Kernel
from .threads import LEAST, parts


@Kernel
def layer_norm_forward(
    x_RC: Array, branch_RC: Array | None, gain: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    """The sum x + branch, that normalised, the mean of each row, and one over its standard deviation.

    Without a branch the first result is x itself.
    """
    width = x_RC.shape[1]
    sum_RC = x_RC if branch_RC is None else x_RC + branch_RC
    mean_R1 = sum_RC.sum(axis=1, keepdims=True) / width
    y_RC = sum_RC - mean_R1
    scale_R1 = 1 / namespace(x_RC).sqrt(_row_dot(y_RC, y_RC) / width + eps)
    y_RC *= scale_R1
    y_RC = y_RC * gain
    y_RC += bias
    return sum_RC, y_RC, mean_R1, scale_R1


@Kernel
def layer_norm_pullback(
    g_RC: Array, g_sum_RC: Array | None, x_RC: Array, mean_R1: Array, scale_R1: Array, gain: Array
) -> tuple[Array, Array, Array]:
    """Gradients of x, which was normalised, of gain and of bias; g_sum is what x is due besides, or None."""
    n_RC = x_RC - mean_R1
    n_RC *= scale_R1
    gx_RC, g_gain = _pulled_back(g_RC, g_sum_RC, n_RC, scale_R1, gain, centred=True)
    return gx_RC, g_gain, g_RC.sum(axis=0)


@Kernel
def rms_norm_forward(
    x_RC: Array, branch_RC: Array | None, gain: Array, eps: float
) -> tuple[Array, Array, Array]:
    """The sum x + branch, that normalised, and one over the root mean square of each row.

    Without a branch the first result is x itself.
    """
    sum_RC = x_RC if branch_RC is None else x_RC + branch_RC
    scale_R1 = 1 / namespace(x_RC).sqrt(_row_dot(sum_RC, sum_RC) / x_RC.shape[1] + eps)
    return sum_RC, sum_RC * scale_R1 * gain, scale_R1


@Kernel
def rms_norm_pullback(
    g_RC: Array, g_sum_RC: Array | None, x_RC: Array, scale_R1: Array, gain: Array
) -> tuple[Array, Array]:
    """Gradients of x, which was normalised, and of gain; g_sum is what x is due besides, or None."""
    return _pulled_back(g_RC, g_sum_RC, x_RC * scale_R1, scale_R1, gain, centred=False)


def _pulled_back(
    g_RC: Array, g_sum_RC: Array | None, n_RC: Array, scale_R1: Array, gain: Array, *, centred: bool
) -> tuple[Array, Array]:
    """Gradients of x and gain, from the normalised rows n."""
    width = g_RC.shape[1]
    h_RC = g_RC * gain
    along_R1 = _row_dot(h_RC, n_RC) / width
    if centred:
        h_RC -= h_RC.sum(axis=1, keepdims=True) / width
    h_RC -= n_RC * along_R1
    h_RC *= scale_R1
    if g_sum_RC is not None:
        h_RC += g_sum_RC
    return h_RC, namespace(g_RC).einsum("rc,rc->c", g_RC, n_RC)


def _row_dot(a_RC: Array, b_RC: Array) -> Array:
    """Inner product of each row of a with that of b, as a column."""
    xp = namespace(a_RC)
    if xp is np:
        return np.einsum("rc,rc->r", a_RC, b_RC)[:, None]
    return (a_RC * b_RC).sum(axis=1, keepdims=True)


# In the bodies an array may be None, and what it is for is then not compiled: branch and the sum where there is no
# addition, mean and bias for RMSNorm. Scales are computed in float64, as compilers take 1 / sqrt(x) in float32 for an
# invitation to estimate it, and their estimate for an infinite x is NaN.


def _forward_part(
    team: Any, part: int, start: int, stop: int,
    x: Any, branch: Any, gain: Any, bias: Any, eps: Any, whole: Any, y: Any, mean: Any, scale: Any,
) -> None:  # fmt: skip
    kind = x.dtype.type
    C = x.shape[1]
    width = kind(C)
    for r in range(start, stop):
        row, out = x[r], y[r]
        total, square = kind(0), kind(0)
        if branch is not None:
            given, added, row = x[r], branch[r], whole[r]
            for c in range(C):
                row[c] = given[c] + added[c]
        if mean is not None:
            for c in range(C):  # on its own: see `parallel`
                total = plus(total, row[c])
            middle = total / width
            mean[r, 0] = middle
            for c in range(C):
                d = row[c] - middle
                square = plus(square, d * d)
            s = kind(1 / np.sqrt(np.float64(square / width + eps)))
            for c in range(C):
                out[c] = (row[c] - middle) * s * gain[c] + bias[c]
        else:
            for c in range(C):
                square = plus(square, row[c] * row[c])
            s = kind(1 / np.sqrt(np.float64(square / width + eps)))
            for c in range(C):
                out[c] = row[c] * s * gain[c]
        scale[r, 0] = s


def _pullback_part(
    team: Any, part: int, start: int, stop: int,
    g: Any, g_sum: Any, x: Any, mean: Any, scale: Any, gain: Any, gx: Any, sums: Any,
) -> None:  # fmt: skip
    kind = x.dtype.type
    C = x.shape[1]
    width = kind(C)
    to_gain, to_bias = sums[part, 0], sums[part, 1]
    to_gain[:] = kind(0)
    to_bias[:] = kind(0)
    for r in range(start, stop):
        given, row, out, s = g[r], x[r], gx[r], scale[r, 0]
        middle = kind(0)
        total, along = kind(0), kind(0)
        if mean is not None:
            middle = mean[r, 0]
            for c in range(C):
                n = (row[c] - middle) * s
                h = given[c] * gain[c]
                total = plus(total, h)
                along = plus(along, h * n)
            for c in range(C):
                to_gain[c] += given[c] * ((row[c] - middle) * s)
                to_bias[c] += given[c]
        else:
            for c in range(C):
                n = row[c] * s
                along = plus(along, given[c] * gain[c] * n)
            for c in range(C):
                to_gain[c] += given[c] * (row[c] * s)
        total /= width
        along *= s / width
        if g_sum is not None:
            due = g_sum[r]
            for c in range(C):
                out[c] = (given[c] * gain[c] - total - (row[c] - middle) * along) * s + due[c]
        else:
            for c in range(C):
                out[c] = (given[c] * gain[c] - total - (row[c] - middle) * along) * s


@layer_norm_forward.variant(
    "numba", library="numpy", when=lambda *a: is_float(*(x for x in a[:4] if x is not None))
)
def _numba_forward() -> Any:
    """Each row stays in cache for the sum, its mean, its variance and the result."""
    run = parallel(_forward_part)
    if run is None:
        return None

    def forward(
        x_RC: Array, branch_RC: Array | None, gain: Array, bias: Array, eps: float
    ) -> tuple[Array, Array, Array, Array]:
        R, C = x_RC.shape
        kind = x_RC.dtype.type
        sum_RC = None if branch_RC is None else np.empty_like(x_RC)
        y_RC = np.empty_like(x_RC)
        mean_R1, scale_R1 = np.empty((R, 1), kind), np.empty((R, 1), kind)
        run(
            R,
            *(x_RC, branch_RC, gain, bias, kind(eps), sum_RC, y_RC, mean_R1, scale_R1),
            least=_least(C),
        )
        return x_RC if sum_RC is None else sum_RC, y_RC, mean_R1, scale_R1

    return forward


@layer_norm_pullback.variant(
    "numba", library="numpy", when=lambda *a: is_float(*(x for x in a if x is not None))
)
def _numba_pullback() -> Any:
    """All gradients in one visit to each row; those of gain and bias by parts, added in order."""
    run = parallel(_pullback_part)
    if run is None:
        return None

    def pullback(
        g_RC: Array,
        g_sum_RC: Array | None,
        x_RC: Array,
        mean_R1: Array,
        scale_R1: Array,
        gain: Array,
    ) -> tuple[Array, Array, Array]:
        R, C = x_RC.shape
        gx_RC, sums = np.empty_like(x_RC), _sums(x_RC)
        run(
            R,
            *(g_RC, g_sum_RC, x_RC, mean_R1, scale_R1, gain, gx_RC, sums),
            least=_least(C),
        )
        return gx_RC, sums[:, 0, :C].sum(axis=0), sums[:, 1, :C].sum(axis=0)

    return pullback


@rms_norm_forward.variant(
    "numba", library="numpy", when=lambda *a: is_float(*(x for x in a[:3] if x is not None))
)
def _numba_rms_forward() -> Any:
    """As for layer norm."""
    run = parallel(_forward_part)
    if run is None:
        return None

    def forward(
        x_RC: Array, branch_RC: Array | None, gain: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        R, C = x_RC.shape
        kind = x_RC.dtype.type
        sum_RC = None if branch_RC is None else np.empty_like(x_RC)
        y_RC, scale_R1 = np.empty_like(x_RC), np.empty((R, 1), kind)
        run(
            R,
            *(x_RC, branch_RC, gain, None, kind(eps), sum_RC, y_RC, None, scale_R1),
            least=_least(C),
        )
        return x_RC if sum_RC is None else sum_RC, y_RC, scale_R1

    return forward


@rms_norm_pullback.variant(
    "numba", library="numpy", when=lambda *a: is_float(*(x for x in a if x is not None))
)
def _numba_rms_pullback() -> Any:
    """As for layer norm."""
    run = parallel(_pullback_part)
    if run is None:
        return None

    def pullback(
        g_RC: Array, g_sum_RC: Array | None, x_RC: Array, scale_R1: Array, gain: Array
    ) -> tuple[Array, Array]:
        R, C = x_RC.shape
        gx_RC, sums = np.empty_like(x_RC), _sums(x_RC)
        run(
            R,
            *(g_RC, g_sum_RC, x_RC, None, scale_R1, gain, gx_RC, sums),
            least=_least(C),
        )
        return gx_RC, sums[:, 0, :C].sum(axis=0)

    return pullback


def _least(width: int) -> int:
    """Rows that are worth a thread's while."""
    return -(-LEAST // max(1, width))


def _sums(x_RC: Array) -> Array:
    """Room for each part's gradients of gain and bias, apart by more than what a core fetches at once."""
    R, C = x_RC.shape
    return np.empty((parts(R, _least(C)), 2, C + 32), x_RC.dtype)


TEAMS = {"warp": 1056, "narrow": 1056, "block": 264, "wide": 264, "any": 264}
"""Of the pullback on the device, by the shape of rows: each adds up its rows for the gradients of gain and bias.

One block of eight warps, or two of one team, for each of an H200's 132 multiprocessors; on all devices, as the order of
the sums depends on it.
"""


def _cuda_takes(statistics: tuple[Array, ...], *arrays: Array | None) -> bool:
    """Means, scales and gradients of gain and bias are float32 on the device, whatever rows are stored as."""
    present = [a for a in arrays if a is not None]
    kinds = {a.dtype.name for a in statistics}
    return present[0].size > 0 and cuda.known(*present) and kinds <= {"float32"}


def _cuda_norm(
    x_RC: Array, branch_RC: Array | None, gain: Array, bias: Array | None, eps: float
) -> tuple[Array, Array, Array, Array]:
    R, C = x_RC.shape
    x_RC, branch_RC, gain, bias = cuda.whole(x_RC, branch_RC, gain, bias)
    sum_RC = None if branch_RC is None else cuda.empty(x_RC, (R, C))
    y_RC, scale_R1 = cuda.empty(x_RC, (R, C)), cuda.empty(x_RC, (R, 1), np.float32)
    mean_R1 = None if bias is None else cuda.empty(x_RC, (R, 1), np.float32)
    shape = cuda.rows(C, x_RC, branch_RC, gain, bias, sum_RC, y_RC)
    cuda.launch(
        "layer_norm", f"norm_forward_{x_RC.dtype.name}_{shape.name}",
        -(-R // shape.teams), cuda.THREADS,
        x_RC, branch_RC, gain, bias, float(eps), sum_RC, y_RC, mean_R1, scale_R1, R, C,
    )  # fmt: skip
    return (
        x_RC if sum_RC is None else sum_RC,
        y_RC,
        scale_R1 if mean_R1 is None else mean_R1,
        scale_R1,
    )


def _cuda_norm_back(
    g_RC: Array, g_sum_RC: Array | None, x_RC: Array, mean_R1: Array | None, scale_R1: Array, gain: Array
) -> tuple[Array, Array, Array]:  # fmt: skip
    R, C = x_RC.shape
    kind = x_RC.dtype.name
    g_RC, g_sum_RC, x_RC, gain = cuda.whole(g_RC, g_sum_RC, x_RC, gain)
    gx_RC = cuda.empty(x_RC, (R, C))
    g_gain, g_bias = (cuda.empty(x_RC, (C,), np.float32) for _ in range(2))
    shape = cuda.rows(C, g_RC, g_sum_RC, x_RC, gain, gx_RC)
    teams = min(R, TEAMS[shape.name])
    sums = cuda.empty(x_RC, (teams, 2, C), np.float32)
    cuda.launch(
        "layer_norm", f"norm_pullback_{kind}_{shape.name}", -(-teams // shape.teams), cuda.THREADS,
        g_RC, g_sum_RC, x_RC, mean_R1, scale_R1, gain, gx_RC, sums, R, C, teams,
    )  # fmt: skip
    cuda.launch("layer_norm", "norm_finish", -(-2 * C // 32), 1024, sums, g_gain, g_bias, C, teams)
    return gx_RC, g_gain, g_bias


@layer_norm_forward.variant("cuda", library="cupy", when=lambda *a: _cuda_takes((), *a[:4]))
def _cuda_forward() -> Any:
    """A team of threads for each row, which is held in registers if it fits."""
    return _cuda_norm if cuda.usable() else None


@layer_norm_pullback.variant(
    "cuda", library="cupy", when=lambda g, s, x, mean, scale, gain: _cuda_takes((mean, scale), g, s, x, gain)
)  # fmt: skip
def _cuda_pullback() -> Any:
    """One visit to each row, as forward; a second kernel adds up the teams' gradients of gain and bias in order."""
    return _cuda_norm_back if cuda.usable() else None


@rms_norm_forward.variant("cuda", library="cupy", when=lambda *a: _cuda_takes((), *a[:3]))
def _cuda_rms_forward() -> Any:
    """As for layer norm."""

    def forward(
        x_RC: Array, branch_RC: Array | None, gain: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        sum_RC, y_RC, _, scale_R1 = _cuda_norm(x_RC, branch_RC, gain, None, eps)
        return sum_RC, y_RC, scale_R1

    return forward if cuda.usable() else None


@rms_norm_pullback.variant(
    "cuda", library="cupy", when=lambda g, s, x, scale, gain: _cuda_takes((scale,), g, s, x, gain)
)
def _cuda_rms_pullback() -> Any:
    """As for layer norm."""

    def pullback(
        g_RC: Array, g_sum_RC: Array | None, x_RC: Array, scale_R1: Array, gain: Array
    ) -> tuple[Array, Array]:
        return _cuda_norm_back(g_RC, g_sum_RC, x_RC, None, scale_R1, gain)[:2]

    return pullback if cuda.usable() else None
