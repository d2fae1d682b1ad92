"""Cross-entropy of rows of logits with labels; and of a linear layer, whose logits never exist whole.

With smoothing e the target is 1 - e at the label plus e / V everywhere (Szegedy et al., 2016, section 7).
"""

from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from .matmul import product
from .registry import Kernel

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
