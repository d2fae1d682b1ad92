"""Recurrent layers: one cell that reads a sequence, and several of them on top of each other.

New weights are uniform between -1 / sqrt(H) and 1 / sqrt(H), biases 0, but that of an LSTM's forget gate is 1, so that
a new cell remembers. Gates lie side by side in the columns of the weights, i, f, g, o and r, z, n.

Axes: B batch, T time, D width of what is read, H width of the state.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from ..autograd import Tensor, ops
from ..backend import namespace
from ..errors import ConfigError, ShapeError
from ..types import Array, Generator
from . import init
from .module import Module

State = tuple[Tensor, ...]
"""What a cell remembers, (B, H) each: h, and c of an LSTM."""


class Cell(Module):
    """Reads a sequence in one direction; to be subclassed.

    Attributes:
        weight_in: (D, gates H), of what is read.
        weight: (H, gates H), of the state.
        bias: (gates H,).
        width: of the state, H.
        states: how many arrays it remembers.
    """

    gates: ClassVar[int]
    states: ClassVar[int] = 1

    def __init__(self, width_in: int, width: int, *, rng: Generator | None) -> None:
        bound = 1 / math.sqrt(width)
        self.weight_in = init.uniform(rng, (width_in, self.gates * width), bound)
        self.weight = init.uniform(rng, (width, self.gates * width), bound)
        self.bias = init.zeros(rng, (self.gates * width,))
        self.width = width

    def __call__(
        self, x: Tensor, state: State, *, real: Array | None = None
    ) -> tuple[Tensor, State]:
        """States h after each step (T, B, H), and what is remembered at the end.

        Args:
            x: (T, B, D); time comes first.
            state: before.
            real: (T, B) booleans, false for padding, which changes no state.
        """
        return self.read(ops.linear(x, self.weight_in, self.bias), state, real)

    def step(self, x: Tensor, state: State, *, real: Array | None = None) -> State:
        """What is remembered after one more step; x is (B, D), real (B,)."""
        return self.step_on(ops.linear(x, self.weight_in, self.bias), state, real)

    def read(self, gates: Tensor, state: State, real: Array | None) -> tuple[Tensor, State]:
        """As calling it, from the input's part of the gates."""
        raise NotImplementedError

    def step_on(self, gates: Tensor, state: State, real: Array | None) -> State:
        """As `step`, from the input's part of the gates."""
        raise NotImplementedError


class RNN(Cell):
    """h' = tanh(x W_in + b + h W) (Elman, 1990)."""

    gates = 1

    def read(self, gates: Tensor, state: State, real: Array | None) -> tuple[Tensor, State]:
        """All steps."""
        hidden = ops.rnn(gates, *state, self.weight, real=real)
        return hidden, (hidden[-1],)

    def step_on(self, gates: Tensor, state: State, real: Array | None) -> State:
        """One step."""
        return (ops.rnn_step(gates, *state, self.weight, real=real),)


class LSTM(Cell):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997; forget gates: Gers et al., 2000); see `ops.lstm`."""

    gates = 4
    states = 2

    def __init__(self, width_in: int, width: int, *, rng: Generator | None) -> None:
        super().__init__(width_in, width, rng=rng)
        if rng is not None:
            self.bias.write()[width : 2 * width] = 1  # Jozefowicz et al., 2015

    def read(self, gates: Tensor, state: State, real: Array | None) -> tuple[Tensor, State]:
        """All steps."""
        hidden, c = cast(Any, ops.lstm(gates, *state, self.weight, real=real))
        return hidden, (hidden[-1], c)

    def step_on(self, gates: Tensor, state: State, real: Array | None) -> State:
        """One step."""
        return cast(State, ops.lstm_step(gates, *state, self.weight, real=real))


class GRU(Cell):
    """Gated recurrent unit (Cho et al., 2014), with the reset behind the product; see `ops.gru`.

    Attributes:
        bias_reset: (H,), added to what is reset.
    """

    gates = 3

    def __init__(self, width_in: int, width: int, *, rng: Generator | None) -> None:
        super().__init__(width_in, width, rng=rng)
        self.bias_reset = init.zeros(rng, (width,))

    def read(self, gates: Tensor, state: State, real: Array | None) -> tuple[Tensor, State]:
        """All steps."""
        hidden = ops.gru(gates, *state, self.weight, self.bias_reset, real=real)
        return hidden, (hidden[-1],)

    def step_on(self, gates: Tensor, state: State, real: Array | None) -> State:
        """One step."""
        return (ops.gru_step(gates, *state, self.weight, self.bias_reset, real=real),)


CELLS: dict[str, type[Cell]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
"""Cells by name."""

DIRECTIONS = ("forward", "backward", "both")


class Recurrent(Module):
    """Layers of cells on top of each other; each reads what the one below says at every step.

    Attributes:
        cells: of the layers, from below; None in a stack that only reads backward.
        backward_cells: those that read from the end, as many.
        direction: "forward", "backward" or "both", whose states then lie side by side, 2 H wide.
        dropout: of what a layer hands to the next.
    """

    def __init__(
        self,
        cell: str,
        width_in: int,
        width: int,
        *,
        layers: int = 1,
        direction: str = "forward",
        dropout: float = 0.0,
        rng: Generator | None,
    ) -> None:
        if cell not in CELLS or direction not in DIRECTIONS:
            raise ConfigError(
                f"cell is {cell!r}, expected one of {', '.join(CELLS)}; direction is {direction!r}, expected one of "
                f"{', '.join(DIRECTIONS)}."
            )
        ways = 2 if direction == "both" else 1
        widths = [width_in, *[ways * width] * (layers - 1)]
        forward, backward = direction != "backward", direction != "forward"
        self.cells = [CELLS[cell](w, width, rng=rng) for w in widths] if forward else []
        self.backward_cells = [CELLS[cell](w, width, rng=rng) for w in widths] if backward else []
        self.direction = direction
        self.dropout = dropout

    @property
    def columns(self) -> list[Cell]:
        """Every cell in the order of its state: layer by layer, forward before backward."""
        stacks = [stack for stack in (self.cells, self.backward_cells) if stack]
        return [cell for layer in zip(*stacks, strict=True) for cell in layer]

    def new_states(self, batch: int) -> list[State]:
        """Zeros for each cell."""
        made = []
        for cell in self.columns:
            like = cell.weight.array
            zeros = namespace(like).zeros((batch, cell.width), like.dtype)
            made.append(tuple(Tensor.wrap(zeros) for _ in range(cell.states)))
        return made

    def __call__(
        self,
        x: Tensor,
        states: Sequence[State] | None = None,
        *,
        real: Array | None = None,
        seen: list[Tensor] | None = None,
        rng: Generator | None = None,
    ) -> tuple[Tensor, list[State]]:
        """What the last layer says at each step, (B, T, H) or (B, T, 2 H), and the states at the end.

        Args:
            x: (B, T, D).
            states: one for each of `columns`; zeros unless given.
            real: (B, T) booleans, false for padding, on either side, which changes no state.
            seen: what each layer says is added to it, (B, T, ...).
            rng: source of dropout; without it nothing is dropped.
        """
        before = self.checked(states, x.shape[0])
        y = ops.transpose(x, axes=(1, 0, 2))
        real_TB = None if real is None else namespace(real).ascontiguousarray(real.T)
        after: list[State] = []
        stacks = [stack for stack in (self.cells, self.backward_cells) if stack]
        for number, layer in enumerate(zip(*stacks, strict=True)):
            if number:
                y = ops.dropout(y, rate=self.dropout, rng=rng)
            said = []
            for cell in layer:
                back = self.direction == "backward" or (len(layer) == 2 and cell is layer[1])
                hidden, state = _read(cell, y, before[len(after)], real_TB, back)
                said.append(hidden)
                after.append(state)
            y = said[0] if len(said) == 1 else ops.concatenate(said, axis=-1)
            if seen is not None:
                seen.append(ops.transpose(y, axes=(1, 0, 2)))
        return ops.transpose(y, axes=(1, 0, 2)), after

    def step(
        self,
        x: Tensor,
        states: Sequence[State],
        *,
        real: Array | None = None,
        rng: Generator | None = None,
    ) -> list[State]:
        """The states after one more step forward, from x (B, D); that of the last layer is [-1][0]."""
        if self.direction != "forward":
            raise ConfigError(f"step goes forward, but this stack reads {self.direction}.")
        after: list[State] = []
        for cell, state in zip(self.cells, self.checked(states, x.shape[0]), strict=True):
            if after:
                x = ops.dropout(x, rate=self.dropout, rng=rng)
            after.append(cell.step(x, state, real=real))
            x = after[-1][0]
        return after

    def checked(self, states: Sequence[State] | None, batch: int) -> Sequence[State]:
        """The states, zeros for None.

        Raises:
            ShapeError: they are not those of this stack, or of another batch.
        """
        if states is None:
            return self.new_states(batch)
        expected = [tuple((batch, cell.width) for _ in range(cell.states)) for cell in self.columns]
        found = [tuple(part.shape for part in state) for state in states]
        if found != expected:
            raise ShapeError(
                f"state has shapes {found}, but this model with a batch of {batch} has {expected}. A state belongs to "
                "one model and one batch; begin another batch without a state."
            )
        return states


def _read(
    cell: Cell, x: Tensor, state: State, real: Array | None, back: bool
) -> tuple[Tensor, State]:
    """One cell over the sequence; from its end, the padding behind a text is read first and changes nothing."""
    if not back:
        return cell(x, state, real=real)
    turned = None if real is None else real[::-1]
    hidden, state = cell(ops.flip(x, axis=0), state, real=turned)
    return ops.flip(hidden, axis=0), state
