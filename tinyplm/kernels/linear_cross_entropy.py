"""Cross-entropy of a linear layer with labels; its logits, mostly the largest array of a step, never exist whole."""

from typing import Any

import numpy as np

from ..backend import namespace
from ..types import Array
from . import cuda, matmul_cuda
from .cross_entropy import cross_entropy_in_place, cross_entropy_total
from .matmul import product, product_in_precision, sum_rows
from .precision import prepare
from .registry import Kernel

SLICE = 1 << 25
"""Logits in one slice of the linear layer: 128 MB of float32.

Each slice reads the whole weight and adds to the whole of its gradient. With 50257 classes, slices that would fit a
cache are therefore slower, not faster: with 16 MB by two thirds, with 4 MB four times.
"""

ALIGNED = 128
"""What rows of a slice, and values of a row, come in multiples of on a card."""


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

    Computed in slices of tokens, so that at most SLICE logits exist at once, or one row of them. Tokens whose share is
    0 are left out, whatever their x is: of masked language models that is most of the work. Products are in the
    precision that holds.
    """
    xp = namespace(x_ND)
    N, V = len(x_ND), len(weight_VD)
    used = xp.flatnonzero(share_N)
    slices = -(-len(used) // max(1, SLICE // max(1, V)))
    step = -(-len(used) // max(1, slices)) or 1  # slices of one size
    space_RV = xp.empty((min(step, len(used)), V), x_ND.dtype)
    losses_R = xp.empty(len(space_RV), x_ND.dtype)
    matrix = prepare(weight_VD, weight=True)
    total = 0.0
    gx = xp.zeros(x_ND.shape, x_ND.dtype) if gradient else None
    g_weight = xp.zeros(weight_VD.shape, weight_VD.dtype) if gradient else None
    g_bias = None if bias_V is None or not gradient else xp.zeros(bias_V.shape, bias_V.dtype)
    for start in range(0, len(used), step):
        here = used[start : start + step]
        if len(used) == N:  # no copy
            here = slice(start, start + step)
        x, labels, share = x_ND[here], labels_N[here], share_N[here]
        rows = prepare(x)
        logits = product_in_precision(rows, matrix.T, space_RV[: len(x)])
        if bias_V is not None:
            logits += bias_V
        losses = losses_R[: len(x)]
        cross_entropy_in_place(logits, losses, labels, share, smoothing, gradient)
        if gx is not None:  # logits are the gradient now
            given = prepare(logits)
            gx[here] = product_in_precision(given, matrix)
            product_in_precision(given.T, rows, g_weight, 1.0 if start else 0.0)
            if g_bias is not None:
                g_bias += sum_rows(logits)
        total = total + (losses.astype(np.float64) * share).sum()
    return total, None if gx is None or g_weight is None else (gx, g_weight, g_bias)


def _cuda_takes(x_ND: Array, weight: Array, bias: Array | None, labels: Array, *_: Any) -> bool:
    arrays = (x_ND, weight) if bias is None else (x_ND, weight, bias)
    return x_ND.size > 0 and cuda.known(*arrays) and labels.dtype.kind in "iu"


@linear_cross_entropy.variant("cuda", library="cupy", when=_cuda_takes)
def _cuda() -> Any:
    """All tokens, as choosing some would wait for the card, in large slices; logits are stored as x is.

    Losses and the gradients of weight and bias are float32.
    """

    def slices(
        x_ND: Array, weight_VD: Array, bias_V: Array | None,
        labels_N: Array, share_N: Array, smoothing: float, gradient: bool,
    ) -> tuple[Array, tuple[Array, Array, Array | None] | None]:  # fmt: skip
        N, V = len(x_ND), len(weight_VD)
        space_RV = _cuda_space(x_ND, V)
        share_N = namespace(x_ND).ascontiguousarray(share_N, np.float32)
        losses_N = cuda.empty(x_ND, (N,), np.float32)
        made: Any = None
        if gradient:
            gx, g_weight = (
                cuda.empty(x_ND, x_ND.shape),
                cuda.empty(x_ND, weight_VD.shape, np.float32),
            )
            g_bias = None if bias_V is None else cuda.empty(x_ND, (V,), np.float32, zeros=True)
            made = gx, g_weight, g_bias
            used = _Used(x_ND, share_N, len(space_RV))
        for start in range(0, N, len(space_RV)):
            here = slice(start, start + len(space_RV))
            x = x_ND[here]
            logits = space_RV[: len(x), :V]
            matmul_cuda.compute(x, weight_VD.T, logits, bias=bias_V)
            given = labels_N[here], share_N[here], smoothing, gradient
            cross_entropy_in_place(logits, losses_N[here], *given)
            if made:  # logits are the gradient now
                product(logits, weight_VD, gx[here])
                product(logits.T, used.rows(here), g_weight, 1.0 if start else 0.0)
                if g_bias is not None:  # of whole rows, with what lies between them
                    g_bias += sum_rows(space_RV[: len(x)])[:V]
        return cross_entropy_total(losses_N, share_N), made

    return slices if cuda.usable() else None


class _Used:
    """Copies of rows of x, with zeros for those whose share is 0: what is not finite there times 0 would be NaN.

    Their bits are multiplied with 0 or 1, as whole numbers: so nothing is rounded, widened or waited for.
    """

    def __init__(self, x_ND: Array, share_N: Array, most: int) -> None:
        bits = f"u{x_ND.itemsize}"
        self._bits_ND = namespace(x_ND).ascontiguousarray(x_ND).view(bits)
        self._used_N1 = (share_N != 0).astype(bits)[:, None]
        self._room_RD = cuda.empty(x_ND, (most, x_ND.shape[1]))

    def rows(self, here: slice) -> Array:
        """Those of a slice; they hold until others are asked for."""
        bits_RD = self._bits_ND[here]
        room_RD = self._room_RD[: len(bits_RD)]
        namespace(bits_RD).multiply(bits_RD, self._used_N1[here], room_RD.view(bits_RD.dtype))
        return room_RD


def _cuda_space(x_ND: Array, classes: int) -> Array:
    """Room for the logits of a slice, whose rows begin at 16 bytes.

    It is a thirty-second of the card's memory at most, however much of that is free: the number of slices decides how
    sums are rounded, and a run is to be repeated bit for bit. Slices are of one size.
    """
    pitch = -(-classes // ALIGNED) * ALIGNED
    most = max(ALIGNED, cuda.memory() // 32 // (pitch * x_ND.itemsize))
    count = -(-len(x_ND) // most)
    rows = -(-len(x_ND) // (count * ALIGNED)) * ALIGNED
    return cuda.empty(x_ND, (min(rows, len(x_ND)), pitch))
