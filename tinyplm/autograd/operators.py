"""Gives Tensor its symbols and short methods, each by naming the op that it stands for."""

from typing import Any

from . import ops
from .engine import Tensor


def _swapped(op: Any) -> Any:
    return lambda self, other: op(other, self)


_SYMBOLS = {
    "add": ops.add,
    "sub": ops.subtract,
    "mul": ops.multiply,
    "truediv": ops.divide,
    "pow": ops.power,
    "matmul": ops.matmul,
}
for _name, _op in _SYMBOLS.items():
    setattr(Tensor, f"__{_name}__", _op)
    setattr(Tensor, f"__r{_name}__", _swapped(_op))
Tensor.__neg__ = ops.negate  # type: ignore[attr-defined]
Tensor.__abs__ = ops.abs  # type: ignore[attr-defined]
Tensor.__getitem__ = lambda self, key: ops.index(self, key=key)  # type: ignore[attr-defined]

for _name in [
    "exp",
    "log",
    "sqrt",
    "tanh",
    "sigmoid",
    "abs",
    "sum",
    "mean",
    "var",
    "max",
    "min",
    "cumsum",
    "softmax",
    "log_softmax",
    "logsumexp",
    "clip",
    "masked_fill",
    "split",
    "flip",
]:
    setattr(Tensor, _name, getattr(ops, _name))


def _from_lengths(self: Tensor, *lengths: Any) -> Tensor:
    """The values under another shape, given as one tuple or as separate lengths."""
    return ops.reshape(self, shape=lengths[0] if len(lengths) == 1 else lengths)  # type: ignore[return-value]


def _from_axes(self: Tensor, *axes: Any) -> Tensor:
    """Axes in another order, given as one tuple or as separate numbers; reversed when none is given."""
    flat = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes or None
    return ops.transpose(self, axes=flat)  # type: ignore[return-value]


Tensor.reshape = _from_lengths  # type: ignore[attr-defined]
Tensor.transpose = _from_axes  # type: ignore[attr-defined]
Tensor.T = property(lambda self: ops.transpose(self), doc="Axes reversed.")  # type: ignore[attr-defined]
