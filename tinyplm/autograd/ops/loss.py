"""What training minimises. Sums over tokens are made in float64."""

from typing import Any

import numpy as np

from ...backend import is_array, namespace
from ...errors import ConfigError, DataError, DtypeError, ShapeError
from ...kernels import cross_entropy as kernels
from ...kernels.linear_cross_entropy import linear_cross_entropy as in_slices
from ...kernels.scale import scale_in_place
from ...types import Array, Pullback
from ..engine import op
from ..modes import recording
from .broadcasting import (
    at_least_float32,
    is_half,
    kernels_round,
    like,
    same_precision,
    unbroadcast,
)
from .elementwise import logistic, quiet

IGNORED = -100
"""The label of a position that is not predicted."""

Reduction = str
"""How losses become one number: "mean", "sum", or "none" to keep them all."""


@op
@kernels_round
@quiet
def cross_entropy(
    logits: Array,
    labels: Array,
    *,
    ignored: int = IGNORED,
    smoothing: float = 0.0,
    weights: Array | None = None,
    reduction: Reduction = "mean",
) -> tuple[Array, Pullback]:
    """Minus the log-probability of each label, in nats.

    Shapes:
        logits: (..., V); labels: (...) integers in [0, V) or `ignored`; weights: (...), or None for ones.

    Args:
        logits: before the softmax.
        labels: the classes.
        ignored: the label of a position that does not count.
        smoothing: share e of the target spread evenly over all V classes, the label's own included.
        weights: of each position; "mean" is the weighted mean.
        reduction: "mean", "sum" or "none", which gives 0 where a label is ignored.

    Labels that lie on a card are not looked at: one that is outside gives NaN, and so does the mean of no position.

    Raises:
        IndexError: a label is outside [0, V) and not `ignored`.
        DataError: the mean of no position is asked for.
    """
    if logits.shape[:-1] != np.shape(labels):
        raise ShapeError(
            f"cross_entropy: logits {logits.shape} want labels of shape {logits.shape[:-1]}, got {np.shape(labels)}."
        )
    shape = logits.shape
    logits_RV = logits.reshape(-1, shape[-1])
    labels_R, share_R = _shares(
        "cross_entropy", labels, logits_RV, ignored, smoothing, weights, reduction
    )
    losses_R, log_sum_R1 = kernels.cross_entropy_forward(logits_RV, labels_R, smoothing)
    xp = namespace(logits)
    losses_R = xp.where(share_R == 0, losses_R.dtype.type(0), losses_R) * share_R
    whole = reduction != "none"

    def pullback(g: Array) -> tuple[Array, None]:
        g_R = share_R * (g if whole else g.reshape(-1))
        gx = kernels.cross_entropy_pullback(g_R, logits_RV, labels_R, log_sum_R1, smoothing)
        return gx.reshape(shape), None

    return _total(losses_R) if whole else losses_R.reshape(shape[:-1]), pullback


@op
@kernels_round
@quiet
def linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array | None,
    labels: Array,
    *,
    ignored: int = IGNORED,
    smoothing: float = 0.0,
    weights: Array | None = None,
    reduction: Reduction = "mean",
    scale: float = 1.0,
) -> tuple[Array, Pullback]:
    """Cross-entropy of logits x W' + b that never exist all at once: slices of tokens come and go.

    The gradients are computed in the forward pass, while a slice is at hand, if anything is recorded.

    Shapes:
        x: (..., D); weight: (V, D), a row per class as in an embedding; bias: (V,) or None; labels: (...).

    Args and errors as for cross_entropy; reduction is "mean" or "sum", and the result is multiplied by scale.
    """
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"linear_cross_entropy: x {x.shape} and weight {weight.shape} do not fit; expected (..., D) and (V, D)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"linear_cross_entropy: bias has shape {bias.shape}, expected {weight.shape[:1]}."
        )
    if x.shape[:-1] != np.shape(labels):
        raise ShapeError(
            f"linear_cross_entropy: x {x.shape} wants labels of shape {x.shape[:-1]}, got {np.shape(labels)}."
        )
    if reduction == "none":
        raise ConfigError(
            "linear_cross_entropy gives a mean or a sum; for single losses use cross_entropy."
        )
    shape = x.shape
    x_ND = x.reshape(-1, shape[-1])
    labels_N, share_N = _shares(
        "linear_cross_entropy", labels, x_ND, ignored, smoothing, weights, reduction, len(weight)
    )
    share_N = share_N * share_N.dtype.type(scale)
    total, made = in_slices(x_ND, weight, bias, labels_N, share_N, smoothing, recording())
    y = namespace(x).asarray(total, share_N.dtype)
    if made is None:
        return y, _nothing_recorded

    def pullback(g: Array) -> tuple[Array | None, ...]:
        gx, g_weight, g_bias = (_times(a, g) for a in made)
        return gx.reshape(shape), g_weight, g_bias, None

    return y, pullback


def _times(a: Any, g: Array) -> Any:
    """A gradient, if any, times that of the loss, mostly 1; on a card only the card knows, and a is overwritten."""
    if a is None or namespace(a) is np:
        return a if a is None or g == 1 else a * g
    scale_in_place(a, g)
    return a


def _nothing_recorded(_: Array) -> Any:
    raise RuntimeError("linear_cross_entropy was computed under no_grad and has no gradient.")


def _shares(
    name: str,
    labels: Any,
    beside: Array,
    ignored: int,
    smoothing: float,
    weights: Any,
    reduction: Reduction,
    classes: int | None = None,
) -> tuple[Array, Array]:
    """Labels with the ignored ones at 0, and how much each position counts in the result.

    Shares are of the dtype beside, but at least float32. Labels are checked if the host has them.
    """
    xp, kind = namespace(beside), np.dtype(np.float32) if is_half(beside.dtype) else beside.dtype
    V = beside.shape[1] if classes is None else classes
    labels = labels if is_array(labels) else np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"{name}: labels must be integers, not {labels.dtype}.")
    if not 0 <= smoothing <= 1:
        raise ConfigError(f"{name}: smoothing is {smoothing}, but it must be between 0 and 1.")
    if reduction not in ("mean", "sum", "none"):
        raise ConfigError(f"{name}: reduction is {reduction!r}; expected 'mean', 'sum' or 'none'.")
    if namespace(labels) is np:
        _check_labels(labels, V, ignored)
    labels = xp.asarray(labels)
    used = labels != ignored
    share = used.astype(kind)
    if weights is not None:
        weights = xp.asarray(weights)
        if weights.shape != labels.shape:
            raise ShapeError(
                f"{name}: weights has shape {weights.shape}, expected that of labels, {labels.shape}."
            )
        share = share * weights.astype(kind)
    if reduction == "mean":
        total = share.sum(dtype=np.float64)
        if xp is np and total == 0:
            raise DataError(
                f"{name}: none of the {labels.size} labels counts (all are {ignored}, or their weights add up to 0), "
                "so the mean loss is undefined. Use longer sequences, a higher rate, or reduction='sum'."
            )
        share = (share / total).astype(kind)
    return xp.where(used, labels, 0).reshape(-1), share.reshape(-1)


def _check_labels(labels: Array, classes: int, ignored: int) -> None:
    wrong = (labels != ignored) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        at = np.argwhere(wrong)[0].tolist()
        raise IndexError(
            f"labels contains {labels[tuple(at)]} at {at}, but there are {classes} classes, and {ignored} is ignored"
        )


def _total(losses: Array) -> Array:
    """The sum in float64, returned in the dtype of the losses."""
    return losses.sum(dtype=np.float64).astype(losses.dtype)


def _reduced(losses: Array, reduction: Reduction) -> tuple[Array, float]:
    """Losses brought together, and the factor of each in the result."""
    if reduction == "none":
        return losses, 1.0
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'.")
    if reduction == "mean" and losses.size == 0:
        raise DataError("the mean loss of nothing is undefined; use reduction='sum'.")
    share = 1 / losses.size if reduction == "mean" else 1.0
    return (losses.sum(dtype=np.float64) * share).astype(losses.dtype), share


@op
@at_least_float32
@quiet
def binary_cross_entropy(
    logits: Array, targets: Array, *, reduction: Reduction = "mean"
) -> tuple[Array, Pullback]:
    """Cross-entropy of yes-or-no questions, from logits: max(x, 0) - x t + log(1 + exp(-|x|)), in nats.

    Targets are probabilities of yes, of the shape of logits; they receive a gradient too.
    """
    _same_shape("binary_cross_entropy", logits, targets)
    xp = namespace(logits)
    losses = xp.maximum(logits, 0) - logits * targets + xp.log1p(xp.exp(-xp.abs(logits)))
    y, share = _reduced(same_precision(losses, logits, targets), reduction)
    like_logits, like_targets = like(logits), like(targets)

    def pullback(g: Array) -> tuple[Pullback, Pullback]:
        g = g * share
        return (
            lambda: unbroadcast(g * (logistic(logits) - targets), like_logits),
            lambda: unbroadcast(-g * logits, like_targets),
        )

    return y, pullback


@op
@at_least_float32
@quiet
def mean_squared_error(
    prediction: Array, target: Array, *, reduction: Reduction = "mean"
) -> tuple[Array, Pullback]:
    """Squared difference of two arrays of one shape."""
    _same_shape("mean_squared_error", prediction, target)
    difference = same_precision(prediction - target, prediction, target)
    y, share = _reduced(difference * difference, reduction)
    like_prediction, like_target = like(prediction), like(target)

    def pullback(g: Array) -> tuple[Any, Any]:
        g_both = (2 * share) * g * difference
        return unbroadcast(g_both, like_prediction), unbroadcast(-g_both, like_target)

    return y, pullback


@op
@at_least_float32
@quiet
def cosine(a: Array, b: Array, *, axis: int = -1, eps: float = 1e-8) -> tuple[Array, Pullback]:
    """Cosine of the angle between vectors along an axis; operands broadcast.

    Norms below eps count as eps, so a vector of zeros has cosine 0.
    """
    xp = namespace(a)
    like_a, like_b = like(a), like(b)
    a, b = xp.broadcast_arrays(a, b)
    norm_a, norm_b = (xp.sqrt((x * x).sum(axis=axis, keepdims=True)) for x in (a, b))
    unit_a, unit_b = a / xp.maximum(norm_a, eps), b / xp.maximum(norm_b, eps)
    y = (unit_a * unit_b).sum(axis=axis, keepdims=True)

    def by(unit: Array, other: Array, norm: Array, g: Array) -> Array:
        inward = xp.where(norm > eps, y * unit, y.dtype.type(0))  # a clamped norm is constant
        return g * (other - inward) / xp.maximum(norm, eps)

    def pullback(g: Array) -> tuple[Any, Any]:
        g = xp.expand_dims(g, axis)
        return (
            unbroadcast(by(unit_a, unit_b, norm_a, g), like_a),
            unbroadcast(by(unit_b, unit_a, norm_b, g), like_b),
        )

    return same_precision(y.squeeze(axis), a, b), pullback


@op
@at_least_float32
@quiet
def kl_divergence(
    log_p: Array, log_q: Array, *, reduction: Reduction = "mean"
) -> tuple[Array, Pullback]:
    """Divergence of q from p, the sum over the last axis of p (log p - log q), in nats.

    Shapes:
        log_p, log_q: (..., V) log-probabilities; "mean" is over the leading axes. Where p is 0 nothing is added,
        whatever q is.
    """
    _same_shape("kl_divergence", log_p, log_q)
    xp = namespace(log_p)
    p = xp.exp(log_p)
    nothing = p == 0
    difference = xp.where(nothing, log_p.dtype.type(0), log_p - xp.where(nothing, 0, log_q))
    y, share = _reduced((p * difference).sum(axis=-1), reduction)

    def pullback(g: Array) -> tuple[Array, Array]:
        g = (g * share)[..., None]
        return g * p * (difference + 1), -g * p

    return y, pullback


def _same_shape(name: str, a: Array, b: Array) -> None:
    if np.shape(a) != np.shape(b):
        raise ShapeError(
            f"{name}: the operands must have one shape; got {np.shape(a)} and {np.shape(b)}."
        )
