"""Recurrent layers: steps and sequences, directions, padding, and how they begin."""

import math

import numpy as np
import pytest
from accuracy import assert_same_bits

from tinyplm import Tensor, check_grad
from tinyplm.errors import ConfigError, ShapeError
from tinyplm.nn import CELLS, LSTM, Recurrent

cells = pytest.mark.parametrize("cell", CELLS)


def stack(cell, *, layers=2, direction="forward", dropout=0.0, dtype="float64"):
    made = Recurrent(
        cell, 4, 5, layers=layers, direction=direction, dropout=dropout,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    made.load({name: array.astype(dtype) for name, array in made.arrays().items()})
    return made


def texts(rng, batch=3, time=6):
    return Tensor(rng.standard_normal((batch, time, 4)))


def flat(states):
    return [part.array for state in states for part in state]


@cells
def test_a_sequence_is_its_steps(cell, rng):
    layers, x = stack(cell), texts(rng)
    y, after = layers(x)
    states = layers.new_states(3)
    for t in range(6):
        states = layers.step(x[:, t], states)
        np.testing.assert_allclose(states[-1][0].array, y.array[:, t], rtol=0, atol=1e-14)
    for a, b in zip(flat(states), flat(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@cells
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_state_that_is_carried_equals_one_long_pass(cell, cut, rng):
    layers, x = stack(cell), texts(rng)
    whole, after = layers(x)
    first, middle = layers(x[:, :cut])
    second, end = layers(x[:, cut:], middle)
    found = np.concatenate([first.array, second.array], axis=1)
    np.testing.assert_allclose(found, whole.array, rtol=0, atol=1e-14)
    for a, b in zip(flat(end), flat(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@cells
def test_gradients_flow_through_a_state_that_is_carried(cell, rng):
    layers, x = stack(cell), texts(rng)

    def loss():
        first, middle = layers(x[:, :3])
        second, end = layers(x[:, 3:], middle)
        total = (first * first).sum() + (second * second * second).sum()
        for part in (part for state in end for part in state):
            total = total + (part * part).sum()
        return total

    assert check_grad(loss, wrt=[*layers.parameters()]).derivatives >= 4


@cells
@pytest.mark.parametrize("direction", ["backward", "both"])
def test_reading_backward_is_reading_the_turned_text(cell, direction, rng):
    layers, x = stack(cell, direction=direction, layers=1), texts(rng)
    y, after = layers(x)
    only = stack(cell, layers=1)
    only.load(
        {f"cells.{k.split('.', 1)[1]}": v for k, v in layers.arrays().items() if "backward" in k}
    )
    turned, state = only(Tensor(x.array[:, ::-1]))
    np.testing.assert_allclose(y.array[:, ::-1, -5:], turned.array, rtol=0, atol=1e-14)
    for a, b in zip(flat(after[-1:]), flat(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)
    assert y.shape == (3, 6, 10 if direction == "both" else 5)


@cells
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(cell, direction, side, rng):
    layers = stack(cell, direction=direction)
    lengths, x = [6, 2, 4, 1], rng.standard_normal((4, 6, 4))
    real = np.zeros((4, 6), bool)
    for row, n in enumerate(lengths):
        real[row, slice(0, n) if side == "right" else slice(6 - n, 6)] = True
    y, after = layers(Tensor(x), real=real)
    for row, n in enumerate(lengths):
        alone, state = layers(Tensor(x[row, real[row]][None]))
        assert alone.shape[1] == n
        np.testing.assert_allclose(y.array[row, real[row]], alone.array[0], rtol=0, atol=1e-14)
        for a, b in zip(flat(after), flat(state), strict=True):
            np.testing.assert_allclose(a[row], b[0], rtol=0, atol=1e-14)
    wild = np.where(real[..., None], x, 1e6)
    again, _ = layers(Tensor(wild), real=real)
    assert_same_bits(again.array[real], y.array[real])


def test_dropout_is_between_layers_only(rng):
    x = texts(rng)
    for layers, differs in ((1, False), (2, True)):
        made = stack("lstm", layers=layers, dropout=0.5)
        dropped, _ = made(x, rng=np.random.default_rng(1))
        assert (not np.array_equal(dropped.array, made(x)[0].array)) == differs
        assert dropped.array.all()  # what comes out at the top is not dropped
        again, _ = made(x, rng=np.random.default_rng(1))
        assert_same_bits(again.array, dropped.array)


@cells
def test_new_weights_lie_within_their_bound_and_only_forgetting_has_a_bias(cell):
    made = CELLS[cell](64, 256, rng=np.random.default_rng(0))
    bound = 1 / math.sqrt(256)
    for weight in (made.weight_in, made.weight):
        assert np.abs(weight.array).max() <= bound
        assert abs(weight.array.std() / (bound / math.sqrt(3)) - 1) < 0.02
    expected = np.zeros(made.bias.shape)
    if cell == "lstm":
        expected[256:512] = 1
    np.testing.assert_array_equal(made.bias.array, expected)


def test_a_new_lstm_remembers_and_passes_its_gradient():
    """With input and output gates at one half and a forget gate at sigmoid(1), c fades by 0.73 a step."""
    cell = LSTM(2, 3, rng=np.random.default_rng(0))
    cell.load({k: a * (k == "bias") for k, a in cell.arrays().items()})
    state = Tensor(np.zeros((1, 3), np.float32)), Tensor(np.ones((1, 3), np.float32))
    _, (_, c) = cell(Tensor(np.zeros((4, 1, 2), np.float32)), state)
    np.testing.assert_allclose(c.array, (1 / (1 + math.exp(-1))) ** 4, rtol=1e-6)


def test_a_state_of_another_model_or_batch_is_refused(rng):
    layers, other = stack("lstm"), stack("gru")
    x = texts(rng)
    for states in (
        other.new_states(3),
        layers.new_states(2),
        layers.new_states(3)[:1],
        stack("lstm", layers=3).new_states(3),
    ):
        with pytest.raises(ShapeError, match=r"state has shapes .* batch of 3 has"):
            layers(x, states)


def test_what_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"cell is 'lstmm'.*lstm"):
        Recurrent("lstmm", 2, 2, rng=None)
    with pytest.raises(ConfigError, match=r"direction is 'up'.*both"):
        Recurrent("lstm", 2, 2, direction="up", rng=None)
    both = stack("lstm", direction="both")
    with pytest.raises(ConfigError, match="step goes forward, but this stack reads both"):
        both.step(Tensor(np.zeros((1, 4))), both.new_states(1))
