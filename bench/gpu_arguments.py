"""Arguments for each kernel, at any size, on the card: what checks and times call them with."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .gpu_cases import Ground

Make = Callable[[Ground, int, int, str], tuple[Any, ...]]
"""From rows, columns and a type."""

SEED, RATE, SMOOTHING, EPS = 987_654_321_012, 0.1, 0.1, 1e-5
SINGLE = "float32"


def _rows(count: int) -> Make:
    return lambda ground, R, C, kind: tuple(ground.normal((R, C), kind) for _ in range(count))


def _layer_norm(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    x, branch = g.normal((R, C), kind), g.normal((R, C), kind)
    return x, branch, g.normal((C,), kind), g.normal((C,), kind), EPS


def _rms_norm(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    x, branch, gain, _, eps = _layer_norm(g, R, C, kind)
    return x, branch, gain, eps


def _norm_back(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    """As LayerNorm's forward pass would hand them over; statistics are float32."""
    x = g.normal((R, C), kind)
    wide = x.astype(np.float32)
    mean = wide.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt(((wide - mean) ** 2).mean(axis=1, keepdims=True) + np.float32(EPS))
    return g.normal((R, C), kind), g.normal((R, C), kind), x, mean, scale, g.normal((C,), kind)


def _rms_back(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    given, g_sum, x, _, scale, gain = _norm_back(g, R, C, kind)
    return given, g_sum, x, scale, gain


def probabilities(x: Any, kind: Any) -> Any:
    """Softmax of rows, stored as asked for."""
    e = np.exp(x.astype(np.float32))
    return (e / e.sum(axis=-1, keepdims=True)).astype(kind)


def _softmax_back(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    x = g.normal((R, C), kind)
    return g.normal((R, C), kind), probabilities(x, x.dtype), 1


def _scores(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    return g.normal((2, R, C), kind), 0.125, max(C - R, 0)


def _scores_back(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    s = g.normal((2, R, C), kind)
    return g.normal((2, R, C), kind), probabilities(s, s.dtype), 0.125


def _shares(g: Ground, R: int) -> Any:
    return abs(g.normal((R,), SINGLE)) / np.float32(R)


def _labels(g: Ground, R: int, C: int) -> Any:
    return g.integers(0, C, (R,))


def _cross_entropy(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    return g.normal((R, C), kind), _labels(g, R, C), SMOOTHING


def _cross_entropy_back(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    x = g.normal((R, C), kind)
    total = np.log(np.exp(x.astype(np.float32)).sum(axis=1, keepdims=True))
    return _shares(g, R), x, _labels(g, R, C), total, SMOOTHING


def _in_place(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    losses = g.xp.zeros(R, np.float32)
    return g.normal((R, C), kind), losses, _labels(g, R, C), _shares(g, R), SMOOTHING, True


def _linear_loss(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    """64 values a token, C classes."""
    x, weight = g.normal((R, 64), kind), g.normal((C, 64), kind, 0.125)
    return x, weight, g.normal((C,), kind), _labels(g, R, C), _shares(g, R), SMOOTHING, True


def _adamw(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    """A tenth update; parameters and moments are float32."""
    p, m = g.normal((R, C), SINGLE), g.normal((R, C), SINGLE, 0.1)
    v = abs(g.normal((R, C), SINGLE, 0.1)) + np.float32(1e-3)
    numbers = 0.5, 0.999, 0.9, 0.95, 0.1, 0.05, 1e-3, 1.5, 1e-8
    return p, g.normal((R, C), kind), m, v, *numbers


def _mapped(g: Ground, R: int, C: int, kind: str) -> tuple[Any, ...]:
    """Rows of 192 values, a matrix, a bias."""
    return g.normal((R, 192), kind), g.normal((192, C), kind, 192**-0.5), g.normal((C,), kind)


ARGUMENTS: dict[str, Make] = {
    **dict.fromkeys(("gelu_forward", "gelu_tanh_forward", "relu_forward", "erf"), _rows(1)),
    **dict.fromkeys(("gelu_pullback", "gelu_tanh_pullback", "relu_pullback"), _rows(2)),
    **dict.fromkeys(("sum_rows", "sum_of_squares"), _rows(1)),
    "softmax_forward": lambda g, R, C, kind: (g.normal((R, C), kind), 1),
    "softmax_pullback": _softmax_back,
    "score_softmax": _scores,
    "score_softmax_pullback": _scores_back,
    "layer_norm_forward": _layer_norm,
    "layer_norm_pullback": _norm_back,
    "rms_norm_forward": _rms_norm,
    "rms_norm_pullback": _rms_back,
    "dropout_forward": lambda g, R, C, kind: (g.normal((R, C), kind), RATE, SEED),
    "dropout_pullback": lambda g, R, C, kind: (g.normal((R, C), kind), RATE, SEED),
    "cross_entropy_forward": _cross_entropy,
    "cross_entropy_pullback": _cross_entropy_back,
    "cross_entropy_in_place": _in_place,
    "cross_entropy_total": lambda g, R, C, kind: (g.normal((R,), SINGLE), _shares(g, R)),
    "linear_cross_entropy": _linear_loss,
    "copy_rows": lambda g, R, C, kind: (g.normal((R, C), kind), g.integers(0, R, (2 * R,))),
    "add_rows": lambda g, R, C, kind: (g.normal((R, C), kind), g.integers(0, R, (R,)), R),
    "scale_in_place": lambda g, R, C, kind: (
        *(g.normal((R, C), kind), g.xp.full(1, 0.999, np.float32)),
    ),
    "adamw_update": _adamw,
    "linear_forward": _mapped,
    "linear_gelu_forward": lambda g, R, C, kind: (*_mapped(g, R, C, kind), False),
    "product_gelu_pullback": lambda g, R, C, kind: (
        *(g.normal((R, 192), kind), g.normal((192, C), kind, 192**-0.5), g.normal((R, C), kind)),
        False,
    ),
    "linear_residual_forward": lambda g, R, C, kind: (
        *_mapped(g, R, C, kind),
        g.normal((R, C), kind),
    ),
}
"""By the kernels' names."""
