"""From hidden states to logits over a vocabulary."""

from ..autograd import Tensor, ops, recording
from ..kernels import precision
from ..kernels.few_rows import FEW, few_rows
from .module import Module
from .quantized import Quantized


class Head(Module):
    """Logits x W' (+ b). The weight is (V, D), a row per token, so that it may be an embedding's own."""

    def __init__(self, weight: Tensor | Quantized, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        if isinstance(self.weight, Quantized):
            return self.weight.linear(x, self.bias)
        if x.size <= FEW * x.shape[-1] and not recording() and precision.current() == "float32":
            return self._of_few_rows(x, self.weight)
        return ops.linear(x, ops.transpose(self.weight), self.bias)

    def _of_few_rows(self, x: Tensor, weight: Tensor) -> Tensor:
        """Logits when text is written token by token: BLAS reads a matrix for one row at a fraction of memory speed."""
        weight_VD, bias = weight.array, None if self.bias is None else self.bias.array
        x_ND = x.array.reshape(-1, x.shape[-1])
        y_NV = few_rows(x_ND, None, None, 0.0, weight_VD.T, None, bias, False, None)
        return Tensor.wrap(y_NV.reshape(*x.shape[:-1], len(weight_VD)))

    def matrix(self) -> Tensor:
        """The weight as floats, (V, D): what a loss over the whole vocabulary takes."""
        return self.weight.matrix() if isinstance(self.weight, Quantized) else self.weight
