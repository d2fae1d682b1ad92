"""For every kernel, arguments to try it with, in the layout that it wants."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from accuracy import outputs

import tinyplm.kernels
from tinyplm.kernels.attention import Rules

for _module in pkgutil.iter_modules(tinyplm.kernels.__path__):
    importlib.import_module(f"tinyplm.kernels.{_module.name}")  # so that every kernel is registered

SHAPES = [(1, 1), (3, 7), (8, 8), (5, 33), (2, 1000), (64, 48), (0, 4), (301, 517)]
"""Rows and columns; the last is shared between threads."""


@dataclass(frozen=True)
class KernelCase:
    """How a kernel is called.

    Attributes:
        draw: arguments for so many rows and columns, floats as float64.
        in_place: the arguments that it writes its results to; none if it returns them.
    """

    draw: Callable[[np.random.Generator, int, int], tuple[Any, ...]]
    in_place: tuple[int, ...] = ()

    def arguments(self, R, C, dtype, seed=0):
        made = self.draw(np.random.default_rng(seed), R, C)
        return tuple(a.astype(dtype) if _is_float(a) else a for a in made)

    def call(self, function, *arguments):
        """The results of a function on copies of the arguments."""
        own = [a.copy(order="K") if isinstance(a, np.ndarray) else a for a in arguments]
        result = function(*own)
        return tuple(own[i] for i in self.in_place) if self.in_place else tuple(outputs(result))


def _is_float(a):
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def _rows(rng, R, C):
    return rng.standard_normal((R, C)) * 2


def _normalised(rng, R, C):
    return (_rows(rng, R, C), _rows(rng, R, C), rng.uniform(0.5, 2, (R, 1)), rng.standard_normal(C))


def _labels(rng, R, C):
    return rng.integers(0, C, R)


def _log_sums(x):
    return np.log(np.exp(x).sum(axis=1, keepdims=True))


def _cross_entropy_back(rng, R, C):
    x = _rows(rng, R, C)
    return rng.uniform(0.1, 1, R), x, _labels(rng, R, C), _log_sums(x), 0.1


def _linear(rng, R, C):
    return (
        *(_rows(rng, R, 6), rng.standard_normal((C, 6)), rng.standard_normal(C)),
        *(_labels(rng, R, C), rng.uniform(0, 1, R), 0.1, True),
    )


def _heads(rng, R, C):
    """One batch row, two heads, R queries, up to 64 keys."""
    S = min(C, 64)
    return (rng.standard_normal((1, 2, n, w)) for n, w in ((R, 5), (S, 5), (S, 3)))


RULES = Rules(causal=True, mask=None, scale=0.5)


def _attention(rng, R, C):
    return (*_heads(rng, R, C), None, RULES, True)


def _attention_back(rng, R, C):
    from tinyplm.kernels.attention import attention_forward

    q, k, v = _heads(rng, R, C)
    _, p = attention_forward(q, k, v, None, RULES, True)
    return rng.standard_normal((1, 2, R, 3)), None, q, k, v, None, RULES, p


def _scores(rng, R, C):
    s = rng.standard_normal((2, R, C)) * 3
    s[rng.uniform(size=s.shape) < 0.1] = -np.inf
    return s, 0.5, C - R


def _scores_back(rng, R, C):
    e = np.exp(rng.standard_normal((2, R, C)))
    return rng.standard_normal((2, R, C)), e / e.sum(axis=-1, keepdims=True), 0.5


def _adam(rng, R, C):
    p, g, m = (rng.standard_normal((R, C)) for _ in range(3))
    return p, g, m, rng.uniform(0, 1, (R, C)), 0.5, 0.99, 0.9, 0.999, 1e-3, 0.5, 1e-8


KERNEL_CASES = {
    "erf": KernelCase(lambda rng, R, C: (_rows(rng, R, C),)),
    "gelu_forward": KernelCase(lambda rng, R, C: (_rows(rng, R, C),)),
    "gelu_pullback": KernelCase(lambda rng, R, C: (_rows(rng, R, C), _rows(rng, R, C))),
    "gelu_tanh_forward": KernelCase(lambda rng, R, C: (_rows(rng, R, C),)),
    "gelu_tanh_pullback": KernelCase(lambda rng, R, C: (_rows(rng, R, C), _rows(rng, R, C))),
    "softmax_forward": KernelCase(lambda rng, R, C: (_rows(rng, R, C), 1)),
    "softmax_pullback": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), rng.dirichlet(np.ones(C), R).reshape(R, C), 1)
    ),
    "score_softmax": KernelCase(_scores, in_place=(0,)),
    "score_softmax_pullback": KernelCase(_scores_back, in_place=(0,)),
    "layer_norm_forward": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), *rng.standard_normal((2, C)), 1e-5)
    ),
    "layer_norm_pullback": KernelCase(_normalised),
    "rms_norm_forward": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), rng.standard_normal(C), 1e-6)
    ),
    "rms_norm_pullback": KernelCase(_normalised),
    "cross_entropy_forward": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), _labels(rng, R, C), 0.1)
    ),
    "cross_entropy_pullback": KernelCase(_cross_entropy_back),
    "linear_cross_entropy": KernelCase(_linear),
    "attention_forward": KernelCase(_attention),
    "attention_pullback": KernelCase(_attention_back),
    "product": KernelCase(
        lambda rng, R, C: (rng.standard_normal((R, 64)) / 8, rng.standard_normal((64, C)))
    ),
    "add_rows": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), rng.integers(0, max(1, R // 2), R), max(1, R // 2))
    ),
    "adamw_update": KernelCase(_adam, in_place=(0, 2, 3)),
}
