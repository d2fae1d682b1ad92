"""A weight kept in fewer bits: less memory to read for each token. The arithmetic stays float32."""

import numpy as np

from ..autograd import Tensor, recording
from ..errors import GraphError, NonFiniteError
from ..kernels.few_rows import few_rows
from ..kernels.precision import round_bits
from ..kernels.quantize import dequantize_rows, quantize_rows
from ..types import Array

KINDS = ("int8", "bfloat16")
"""What weights can be quantised to."""


class Quantized:
    """A matrix in fewer bits, with a row for each output.

    Attributes:
        kind: one of KINDS.
        values: (outputs, inputs), int8 or the upper halves of float32 as uint16.
        scale: (outputs,) factors of int8 rows; None for bfloat16.
        columns: the values turned, (inputs, outputs), as products want them.
    """

    def __init__(self, weight_FD: Array, kind: str) -> None:
        if not np.isfinite(weight_FD).all():
            raise NonFiniteError(
                f"A weight of shape {weight_FD.shape} has values that are NaN or infinite, which {kind} cannot hold. "
                "Training diverged or the file is damaged: take an earlier checkpoint."
            )
        self.kind = kind
        self.values: Array
        self.scale: Array | None
        if kind == "int8":
            self.values, self.scale = quantize_rows(weight_FD)
        else:
            single = np.ascontiguousarray(weight_FD, np.float32)
            self.values, self.scale = round_bits(single), None
        self.columns = self.values.T

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """X W + b over the last axis."""
        self.refuse_gradient(x)
        shape = (*x.shape[:-1], len(self.values))
        x_ND = np.ascontiguousarray(x.array.reshape(-1, x.shape[-1]))
        b = None if bias is None else bias.array
        y = few_rows(x_ND, None, None, 0.0, self.columns, self.scale, b, False, None)
        return Tensor.wrap(y.reshape(shape))

    def take_rows(self, ids: Array) -> Tensor:
        """Rows by number, as float32."""
        return Tensor.wrap(
            dequantize_rows(self.values[ids], None if self.scale is None else self.scale[ids])
        )

    def matrix(self) -> Tensor:
        """All of it as float32, (outputs, inputs)."""
        return Tensor.wrap(dequantize_rows(self.values, self.scale))

    def refuse_gradient(self, x: Tensor) -> None:
        """Raise if a gradient would have to flow through this weight."""
        if x.requires_grad and recording():
            raise self.refusal()

    def refusal(self) -> GraphError:
        """Why a quantised model cannot be changed or saved."""
        return GraphError(
            f"The weights of this model are {self.kind}: it can write and be evaluated, but not be trained, saved or "
            "given other values. Do that with the model that tinyplm.quantize was given."
        )
