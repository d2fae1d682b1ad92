"""For every kernel, arguments to try it with, in the layout that it wants."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from accuracy import outputs

import tinyplm.kernels
from tinyplm.kernels.attention import Rules, attention_forward

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
        through: calls it with these arguments and others that are made of them.
    """

    draw: Callable[[np.random.Generator, int, int], tuple[Any, ...]]
    in_place: tuple[int, ...] = ()
    through: Callable[..., Any] | None = None

    def arguments(self, R, C, dtype, seed=0):
        made = self.draw(np.random.default_rng(seed), R, C)
        return tuple(a.astype(dtype) if _is_float(a) else a for a in made)

    def call(self, function, *arguments):
        """The results of a function on copies of the arguments."""
        own = [a.copy(order="K") if isinstance(a, np.ndarray) else a for a in arguments]
        result = self.through(function, *own) if self.through else function(*own)
        return tuple(own[i] for i in self.in_place) if self.in_place else tuple(outputs(result))


def _is_float(a):
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def _rows(rng, R, C):
    return rng.standard_normal((R, C)) * 2


def _norm(rng, R, C):
    """Rows, a branch to be added, gain and bias."""
    return (_rows(rng, R, C), _rows(rng, R, C), *rng.standard_normal((2, C)))


def _norm_back(rng, R, C):
    """Gradients of the normalised rows and of the rows, the rows, their means and scales, and gain."""
    x = _rows(rng, R, C)
    mean, scale = x.mean(axis=1, keepdims=True), 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return _rows(rng, R, C), _rows(rng, R, C), x, mean, scale, rng.standard_normal(C)


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
    """Three batch rows, two heads, R queries, up to 64 keys; and a bias for all rows."""
    S = min(C, 64)
    q, k, v = (rng.standard_normal((3, 2, n, w)) for n, w in ((R, 5), (S, 5), (S, 3)))
    return q, k, v, rng.standard_normal((1, 2, R, S))


RULES = Rules(causal=True, mask=None, scale=0.5)


def _attention(rng, R, C):
    return (*_heads(rng, R, C), RULES, True)


def _attention_through(function, q, k, v, bias, rules, keep):
    """Results and probabilities without a bias, and with one."""
    return tuple(a for some in (None, bias) for a in function(q, k, v, some, rules, keep)[:2])


def _attention_back(rng, R, C):
    return rng.standard_normal((3, 2, R, 3)), *_heads(rng, R, C)


def _log_sum_of(q, k, bias):
    """What the compiled forward pass keeps where probabilities are many: of each row, minus infinity's for none."""
    T, S = q.shape[2], k.shape[2]
    s = q @ k.swapaxes(-1, -2) * q.dtype.type(RULES.scale) + bias
    e = np.where(np.tri(T, S, S - T, dtype=bool), np.exp(s), 0).sum(axis=-1)
    with np.errstate(divide="ignore"):
        return np.where(e == 0, np.inf, np.log(e)).astype(q.dtype).reshape(-1)


def _attention_back_through(function, g, q, k, v, bias):
    """The gradients without a bias and with one, from probabilities that were kept or are made again."""
    results = []
    for some, keep in ((None, True), (bias, True), (bias, False)):
        found = attention_forward(q, k, v, some, RULES, True)
        into = np.empty_like(q), np.empty_like(k), np.empty_like(v)
        if not keep:
            found = found._replace(p=None, log_sum=_log_sum_of(q, k, some))
        g_bias = function(g, None, q, k, v, some, RULES, found, into)
        results += [*into, g_bias] if some is not None else into
    return tuple(results)


def _mapped(rng, R, C):
    """Rows, a matrix and a bias."""
    return _rows(rng, R, 24) / 5, rng.standard_normal((24, C)), rng.standard_normal(C)


def _scores(rng, R, C):
    s = rng.standard_normal((2, R, C)) * 3
    s[rng.uniform(size=s.shape) < 0.1] = -np.inf
    return s, 0.5, C - R


def _scores_back(rng, R, C):
    e = np.exp(rng.standard_normal((2, R, C)))
    return rng.standard_normal((2, R, C)), e / e.sum(axis=-1, keepdims=True), 0.5


def _adam(rng, R, C):
    p, g, m = (rng.standard_normal((R, C)) for _ in range(3))
    return p, g, m, rng.uniform(0, 1, (R, C)), 0.5, 0.99, 0.9, 0.999, 0.1, 1e-3, 1e-3, 2.0, 1e-8


def _few_rows(rng, R, C):
    """Everything around a product of 24 terms, which is small enough for its cancellation not to decide."""
    return (
        *(_rows(rng, R, 24), *rng.standard_normal((2, 24)), 1e-5),
        rng.standard_normal((24, C)) / 24,
        *(rng.uniform(0.1, 1, C), rng.standard_normal(C), True, _rows(rng, R, C)),
    )


def _attend_few(rng, R, C):
    """R new positions of two heads behind up to 64 earlier ones, some of which are padding."""
    start = min(C, 64)
    keys, values = rng.standard_normal((2, 1, 2, start + R, 5))
    real = rng.uniform(size=(1, start + R)) < 0.7
    return rng.standard_normal((R, 30)), keys, values, start, real, 0.5, np.zeros((R, 10))


def _cell(rng, R, C, gates):
    """Gates between -1 and 1 as they are behind tanh, some rows of which are padding, and so many wide."""
    return np.tanh(rng.standard_normal((R, gates * C))), rng.uniform(size=R) < 0.8


def _lstm(rng, R, C):
    a, real = _cell(rng, R, C, 4)
    return (2 * a, *rng.standard_normal((2, R, C)), real, *np.zeros((2, R, C)))


def _lstm_back(rng, R, C):
    a, real = _cell(rng, R, C, 4)
    return (*rng.standard_normal((2, R, C)), a, *rng.standard_normal((2, R, C)), real, 0 * a)


def _gru(rng, R, C):
    a, real = _cell(rng, R, C, 3)
    u, bias = rng.standard_normal((R, 3 * C)), rng.standard_normal(C)
    return (2 * a, u, bias, _rows(rng, R, C), real, *np.zeros((2, R, C)))


def _gru_back(rng, R, C):
    a, real = _cell(rng, R, C, 3)
    return (*rng.standard_normal((1, R, C)), a, *rng.standard_normal((2, R, C)), real, 0 * a, 0 * a)


def _rnn_back(rng, R, C):
    a, real = _cell(rng, R, C, 1)
    return _rows(rng, R, C), a, real, 0 * a


KERNEL_CASES = {
    "erf": KernelCase(lambda rng, R, C: (_rows(rng, R, C),)),
    "relu_forward": KernelCase(lambda rng, R, C: (_rows(rng, R, C),)),
    "relu_pullback": KernelCase(lambda rng, R, C: (_rows(rng, R, C), _rows(rng, R, C))),
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
    "layer_norm_forward": KernelCase(lambda rng, R, C: (*_norm(rng, R, C), 1e-5)),
    "layer_norm_pullback": KernelCase(_norm_back),
    "rms_norm_forward": KernelCase(lambda rng, R, C: (*_norm(rng, R, C)[:3], 1e-6)),
    "rms_norm_pullback": KernelCase(
        lambda rng, R, C: tuple(a for i, a in enumerate(_norm_back(rng, R, C)) if i != 3)
    ),
    "cross_entropy_forward": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), _labels(rng, R, C), 0.1)
    ),
    "cross_entropy_pullback": KernelCase(_cross_entropy_back),
    "cross_entropy_in_place": KernelCase(
        lambda rng, R, C: (
            *(_rows(rng, R, C), np.zeros(R), _labels(rng, R, C), rng.integers(0, 3, R) / 2),
            *(0.1, True),
        ),
        in_place=(0, 1),
    ),
    "cross_entropy_total": KernelCase(
        lambda rng, R, C: (rng.uniform(0, 9, R), rng.uniform(0, 1, R))
    ),
    "linear_cross_entropy": KernelCase(_linear),
    "scale_in_place": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), np.array(rng.uniform(0.1, 1))), in_place=(0,)
    ),
    "attention_forward": KernelCase(_attention, through=_attention_through),
    "attention_pullback": KernelCase(_attention_back, through=_attention_back_through),
    "linear_forward": KernelCase(_mapped),
    "linear_gelu_forward": KernelCase(lambda rng, R, C: (*_mapped(rng, R, C), R % 2 == 0)),
    "linear_residual_forward": KernelCase(
        lambda rng, R, C: (*_mapped(rng, R, C), _rows(rng, R, C))
    ),
    "product_gelu_pullback": KernelCase(
        lambda rng, R, C: (*_mapped(rng, R, C)[:2], _rows(rng, R, C), R % 2 == 0)
    ),
    "sum_rows": KernelCase(lambda rng, R, C: (_rows(rng, R, C),)),
    "product": KernelCase(
        lambda rng, R, C: (rng.standard_normal((R, 64)) / 8, rng.standard_normal((64, C)))
    ),
    "copy_rows": KernelCase(
        lambda rng, R, C: (_rows(rng, max(R, 1), C), rng.integers(0, max(R, 1), R))
    ),
    "few_rows": KernelCase(_few_rows),
    "attend_few": KernelCase(_attend_few, in_place=(1, 2, 6)),
    "add_rows": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), rng.integers(0, max(1, R // 2), R), max(1, R // 2))
    ),
    "adamw_update": KernelCase(_adam, in_place=(0, 2, 3)),
    "sum_of_squares": KernelCase(lambda rng, R, C: (_rows(rng, R, C),)),
    "rnn_gates": KernelCase(
        lambda rng, R, C: (_rows(rng, R, C), _rows(rng, R, C), rng.uniform(size=R) < 0.8),
        in_place=(0,),
    ),
    "rnn_gates_pullback": KernelCase(_rnn_back, in_place=(0, 3)),
    "lstm_gates": KernelCase(_lstm, in_place=(0, 4, 5)),
    "lstm_gates_pullback": KernelCase(_lstm_back, in_place=(0, 1, 6)),
    "gru_gates": KernelCase(_gru, in_place=(0, 5, 6)),
    "gru_gates_pullback": KernelCase(_gru_back, in_place=(0, 5, 6)),
    "dropout_forward": KernelCase(lambda rng, R, C: (_rows(rng, R, C), 0.3, 11)),
    "dropout_pullback": KernelCase(lambda rng, R, C: (_rows(rng, R, C), 0.3, 11)),
}
