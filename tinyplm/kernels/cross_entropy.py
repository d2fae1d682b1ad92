"""Cross-entropy of rows of logits with labels; and of a linear layer, whose logits never exist whole.

With smoothing e the target is 1 - e at the label plus e / V everywhere (Szegedy et al., 2016, section 7).
"""

import math
from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from .compiled import exp32, is_single, jit
from .matmul import product
from .registry import Kernel
from .threads import LEAST, share

SLICE = 1 << 25
"""Logits in one slice of the linear layer: 128 MB of float32."""


@Kernel
def cross_entropy_forward(
    logits_RV: Array, labels_R: Array, smoothing: float
) -> tuple[Array, Array]:
    """Loss of each row in nats, and the logarithm of its sum of exponentials as a column."""
    xp = namespace(logits_RV)
    top_R1 = logits_RV.max(axis=1, keepdims=True)
    e_RV = logits_RV - top_R1
    xp.exp(e_RV, out=e_RV)
    log_sum_R1 = xp.log(e_RV.sum(axis=1, keepdims=True)) + top_R1
    at_label_R1 = xp.take_along_axis(logits_RV, labels_R[:, None], axis=1)
    target_R1 = (
        at_label_R1
        if not smoothing
        else ((1 - smoothing) * at_label_R1 + smoothing * logits_RV.mean(axis=1, keepdims=True))
    )
    return (log_sum_R1 - target_R1)[:, 0], log_sum_R1


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


def _forward_loop(
    logits: Array, labels: Array, smoothing: Any, losses: Array, log_sum: Array
) -> None:
    R, V = logits.shape
    lanes = np.empty(16, np.float32)  # a maximum is only vectorised when it is several at once
    whole = V - V % 16
    for r in range(R):
        row = logits[r]
        lanes[:] = np.float32(-np.inf)
        for j in range(0, whole, 16):
            for k in range(16):
                lanes[k] = row[j + k] if row[j + k] > lanes[k] else lanes[k]
        top = np.float32(-np.inf)
        for j in range(whole, V):
            top = max(top, row[j])
        for k in range(16):
            top = max(top, lanes[k])
        total = np.float32(0)
        for j in range(V):
            total += exp32(row[j] - top)
        log_sum[r, 0] = np.float32(math.log(total)) + top
        target = (np.float32(1) - smoothing) * row[labels[r]]
        if smoothing != np.float32(0):
            spread = np.float32(0)
            for j in range(V):
                spread += row[j]
            target += smoothing * (spread / np.float32(V))
        losses[r] = log_sum[r, 0] - target


def _pullback_loop(
    g: Array, logits: Array, labels: Array, log_sum: Array, smoothing: Any, out: Array
) -> None:
    R, V = logits.shape
    each, rest = smoothing / np.float32(V), np.float32(1) - smoothing
    for r in range(R):
        if g[r] == np.float32(0):
            out[r] = np.float32(0)
            continue
        for j in range(V):
            out[r, j] = exp32(logits[r, j] - log_sum[r, 0]) - each
        out[r, labels[r]] -= rest
        for j in range(V):  # after the difference, so that 1 - 1 is exactly 0
            out[r, j] *= g[r]


@cross_entropy_forward.variant("numba", library="numpy", when=lambda x, *_: is_single(x))
def _numba_forward() -> Any:
    """Each row stays in cache for its maximum and its sum; the exponentials are never stored."""
    loop = jit(_forward_loop, exp32)
    if loop is None:
        return None

    def forward(logits_RV: Array, labels_R: Array, smoothing: float) -> tuple[Array, Array]:
        R, V = logits_RV.shape
        losses_R, log_sum_R1 = np.empty(R, np.float32), np.empty((R, 1), np.float32)
        e = np.float32(smoothing)

        def rows(i: int, j: int) -> None:
            loop(logits_RV[i:j], labels_R[i:j], e, losses_R[i:j], log_sum_R1[i:j])

        share(R, rows, least=-(-LEAST // max(1, V)))
        return losses_R, log_sum_R1

    return forward


@cross_entropy_pullback.variant(
    "numba", library="numpy", when=lambda g, x, _, log_sum, __: is_single(g, x, log_sum)
)
def _numba_pullback() -> Any:
    """One pass instead of six."""
    loop = jit(_pullback_loop, exp32)
    if loop is None:
        return None

    def pullback(
        g_R: Array, logits_RV: Array, labels_R: Array, log_sum_R1: Array, smoothing: float
    ) -> Array:
        out_RV = np.empty_like(logits_RV)
        e = np.float32(smoothing)

        def rows(i: int, j: int) -> None:
            loop(g_R[i:j], logits_RV[i:j], labels_R[i:j], log_sum_R1[i:j], e, out_RV[i:j])

        share(len(g_R), rows, least=-(-LEAST // max(1, logits_RV.shape[1])))
        return out_RV

    return pullback


@Kernel
def linear_cross_entropy(
    x_ND: Array,
    weight_VD: Array,
    bias_V: Array | None,
    labels_N: Array,
    share_N: Array,
    smoothing: float,
    gradient: bool,
) -> tuple[Any, tuple[Array, Array, Array | None] | None]:
    """Loss summed with the share of each token, and its gradients by x, weight and bias if asked for.

    Computed in slices of tokens, so that at most SLICE logits exist at once, or one row of them.
    """
    xp = namespace(x_ND)
    N, V = len(x_ND), len(weight_VD)
    step = max(1, SLICE // max(1, V))
    total = 0.0
    gx = xp.zeros(x_ND.shape, x_ND.dtype) if gradient else None
    g_weight = g_bias = None
    for start in range(0, N, step):
        here = slice(start, start + step)
        logits = product(x_ND[here], weight_VD.T)
        if bias_V is not None:
            logits += bias_V
        labels, share = labels_N[here], share_N[here]
        losses, log_sum = cross_entropy_forward(logits, labels, smoothing)
        total = total + (xp.where(share == 0, 0, losses).astype(np.float64) * share).sum()
        if gx is None:
            continue
        g = cross_entropy_pullback(share, logits, labels, log_sum, smoothing)
        del logits
        gx[here] = product(g, weight_VD)
        part = product(g.T, x_ND[here])
        g_weight = part if g_weight is None else xp.add(g_weight, part, out=g_weight)
        if bias_V is not None:
            part = g.sum(axis=0)
            g_bias = part if g_bias is None else xp.add(g_bias, part, out=g_bias)
    if gx is None:
        return total, None
    if g_weight is None:  # no tokens
        g_weight = xp.zeros(weight_VD.shape, weight_VD.dtype)
        g_bias = None if bias_V is None else xp.zeros(bias_V.shape, bias_V.dtype)
    return total, (gx, g_weight, g_bias)
