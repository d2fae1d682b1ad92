"""From hidden states to logits over a vocabulary, or over a few classes."""

import numpy as np

from ..autograd import Tensor, no_grad, ops, recording
from ..autograd.ops.loss import IGNORED
from ..backend import is_array, namespace
from ..kernels import precision
from ..kernels.few_rows import FEW, few_rows
from ..types import Array
from .module import Module
from .quantized import Quantized

SLICE, CARD_SLICE = 1 << 22, 1 << 28
"""Logits that exist at a time while predictions are examined, and on a card: there few are assumed to leave it idle."""


class Head(Module):
    """Logits x W' (+ b). The weight is (V, D), a row per token, so that it may be an embedding's own.

    Attributes:
        before: what hidden states pass through first, if anything.
        scale: what they are multiplied by.
    """

    def __init__(
        self,
        weight: Tensor | Quantized,
        bias: Tensor | None = None,
        *,
        before: Module | None = None,
        scale: float = 1.0,
    ) -> None:
        self.before = before
        self.weight = weight
        self.bias = bias
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        x = self._features(x)
        if isinstance(self.weight, Quantized):
            return self.weight.linear(x, self.bias)
        few = x.size <= FEW * x.shape[-1] and type(x.array) is np.ndarray
        if few and not recording() and precision.current() == "float32":
            return self._of_few_rows(x, self.weight)
        return ops.linear(x, ops.transpose(self.weight), self.bias)

    def cross_entropy(
        self, x: Tensor, labels: Array, *, smoothing: float = 0.0, scale: float = 1.0
    ) -> Tensor:
        """Minus the log-probabilities of labels (...) after hidden states (..., D), summed, times scale.

        Logits never exist all at once, and those of ignored positions not at all.
        """
        if self.before is not None:
            x, labels = _chosen(x, labels)
        return ops.linear_cross_entropy(
            self._features(x),
            self.matrix(),
            self.bias,
            labels,
            smoothing=smoothing,
            reduction="sum",
            scale=scale,
        )

    def examine(self, x: Tensor, labels: Array) -> tuple[float, int]:
        """Nats lost on all labels, and how many of them are the likeliest; nothing is recorded."""
        with no_grad():
            x, labels = _chosen(x, labels)
            nats, right, xp = 0.0, 0, namespace(x.array)
            step = max(1, (SLICE if xp is np else CARD_SLICE) // self.matrix().shape[0])
            for start in range(0, len(labels), step):
                here = labels[start : start + step]
                logits = self(x[start : start + step])
                nats += ops.cross_entropy(logits, here, reduction="sum").item()
                wide = np.promote_types(logits.dtype, np.float32)
                likeliest = logits.array.astype(wide, copy=False).argmax(axis=-1)
                right += int((likeliest == xp.asarray(here)).sum())
            return nats, right

    def matrix(self) -> Tensor:
        """The weight as floats, (V, D): what a loss over the whole vocabulary takes."""
        return self.weight.matrix() if isinstance(self.weight, Quantized) else self.weight

    def _features(self, x: Tensor) -> Tensor:
        if self.before is not None:
            x = self.before(x)
        return x if self.scale == 1 else x * self.scale

    def _of_few_rows(self, x: Tensor, weight: Tensor) -> Tensor:
        """Logits when text is written token by token: BLAS reads a matrix for one row at a fraction of memory speed."""
        weight_VD, bias = weight.array, None if self.bias is None else self.bias.array
        x_ND = x.array.reshape(-1, x.shape[-1])
        y_NV = few_rows(x_ND, None, None, 0.0, weight_VD.T, None, bias, False, None)
        return Tensor.wrap(y_NV.reshape(*x.shape[:-1], len(weight_VD)))


def _chosen(x: Tensor, labels: Array) -> tuple[Tensor, Array]:
    """The rows (N, D) of hidden states that have a label, and those labels; all if the labels lie on a card."""
    labels = (labels if is_array(labels) else np.asarray(labels)).reshape(-1)
    flat = ops.reshape(x, shape=(-1, x.shape[-1]))
    if namespace(labels) is not np:  # which have one could only be known by waiting for it
        return flat, labels
    rows = np.flatnonzero(labels != IGNORED)
    return (flat, labels) if len(rows) == len(labels) else (ops.take_rows(flat, rows), labels[rows])
