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
tensor: Any = Tensor
for _name, _op in _SYMBOLS.items():
    setattr(tensor, f"__{_name}__", _op)
    setattr(tensor, f"__r{_name}__", _swapped(_op))
tensor.__neg__ = ops.negate
tensor.__abs__ = ops.abs
tensor.__getitem__ = lambda self, key: ops.index(self, key=key)

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
    setattr(tensor, _name, getattr(ops, _name))


def _from_lengths(self: Tensor, *lengths: Any) -> Tensor:
    """The values under another shape, given as one tuple or as separate lengths."""
    return ops.reshape(self, shape=lengths[0] if len(lengths) == 1 else lengths)


def _from_axes(self: Tensor, *axes: Any) -> Tensor:
    """Axes in another order, given as one tuple or as separate numbers; reversed when none is given."""
    flat = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes or None
    return ops.transpose(self, axes=flat)


tensor.reshape = _from_lengths
tensor.transpose = _from_axes
tensor.T = property(lambda self: ops.transpose(self), doc="Axes reversed.")
