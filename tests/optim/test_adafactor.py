"""Adafactor against its algorithm in loops, and what makes it another rule than Adam."""

import math

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.errors import ConfigError
from tinyplm.optim import Adafactor

SHAPES = {"matrix": (3, 4), "gain": (4,), "cube": (2, 3, 2), "scalar": ()}
RATES = [0.1, 0.02, 0.3, 0.0, 0.05]


def drawn(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    parameters = {
        name: Tensor(rng.standard_normal(shape), requires_grad=True, dtype=dtype)
        for name, shape in SHAPES.items()
    }
    gradients = [
        {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}
        for _ in RATES
    ]
    return parameters, gradients


def run(optimizer, gradients, rates=RATES, shrink=1.0):
    for given, rate in zip(gradients, rates, strict=True):
        for name, p in optimizer.parameters.items():
            p.grad = None if given.get(name) is None else given[name].copy()
        optimizer.step(rate, shrink=shrink)


def in_loops(p, gradients, shrink, decay=0.8, clip=1.0):
    """One matrix, or one vector as a list of values."""
    p = p.copy()
    rows, columns, whole = [0.0] * p.shape[0], [0.0] * p.shape[-1], np.zeros(p.shape)
    for t, (g, rate) in enumerate(zip(gradients, RATES, strict=True), 1):
        g, memory = g * shrink, 1 - t**-decay
        u = np.empty(p.shape)
        if p.ndim == 2:
            n, m = p.shape
            for i in range(n):
                mean = math.fsum(g[i, j] ** 2 + 1e-30 for j in range(m)) / m
                rows[i] = memory * rows[i] + (1 - memory) * mean
            for j in range(m):
                mean = math.fsum(g[i, j] ** 2 + 1e-30 for i in range(n)) / n
                columns[j] = memory * columns[j] + (1 - memory) * mean
            for i in range(n):
                for j in range(m):
                    v = rows[i] * columns[j] / (math.fsum(rows) / n)
                    u[i, j] = g[i, j] / math.sqrt(v)
        else:
            for place in np.ndindex(p.shape):
                whole[place] = memory * whole[place] + (1 - memory) * (g[place] ** 2 + 1e-30)
                u[place] = g[place] / math.sqrt(whole[place])
        u /= max(1.0, math.sqrt((u**2).mean()) / clip)
        p -= rate * max(1e-3, math.sqrt((p**2).mean())) * u
    return p


@pytest.mark.parametrize("shrink", [1.0, 0.25])
def test_it_follows_the_paper_value_by_value(shrink):
    parameters, gradients = drawn()
    start = {name: p.numpy().copy() for name, p in parameters.items()}
    run(Adafactor(parameters), gradients, shrink=shrink)
    for name, p in parameters.items():
        given = [g[name] for g in gradients]
        if name == "cube":  # a matrix each, but for its root mean squares, which are of all
            continue
        expected = in_loops(np.atleast_1d(start[name]), [np.atleast_1d(g) for g in given], shrink)
        np.testing.assert_allclose(p.numpy(), expected.reshape(p.shape), rtol=1e-12)


def test_a_matrix_needs_memory_for_its_rows_and_columns_only():
    parameters = {"p": Tensor(np.ones((100, 200)), requires_grad=True)}
    arrays = Adafactor(parameters).arrays()
    assert {name: a.shape for name, a in arrays.items()} == {
        "rows.p": (100,),
        "columns.p": (200,),
    }


def test_the_first_step_knows_the_new_gradient_alone():
    """b is 0 at t = 1: with one value per axis the update is the gradient's sign."""
    p = Tensor(np.array([[2.0]]), requires_grad=True)
    p.grad = np.array([[-1e-4]])
    Adafactor({"p": p}).step(0.1)
    np.testing.assert_allclose(p.numpy(), [[2.0 + 0.1 * 2.0]], rtol=1e-12)


def test_a_relative_step_shrinks_with_the_root_of_time():
    p = Tensor(np.array([1e-9]), requires_grad=True)  # so that its scale is the least one
    optimizer = Adafactor({"p": p}, relative=True)
    moved = []
    for _ in range(20_000 // 1_000):
        optimizer.steps = 1_000 * (len(moved) + 1) * 20 - 1
        before = p.numpy().copy()
        p.grad = np.array([1.0])
        optimizer.arrays()["square.p"][...] = 1.0
        optimizer.step(1.0)
        moved.append(float(before[0] - p.numpy()[0]))
        p.write()[...] = 1e-9
    expected = [1e-3 * min(0.01, 1 / math.sqrt(1_000 * (i + 1) * 20)) for i in range(len(moved))]
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_going_on_from_what_was_saved_gives_the_same_bits(dtype):
    parameters, gradients = drawn(dtype)
    optimizer = Adafactor(parameters)
    run(optimizer, gradients[:3], RATES[:3])
    saved = {name: a.copy() for name, a in optimizer.arrays().items()}, dict(optimizer.state())
    values = {name: p.numpy().copy() for name, p in parameters.items()}
    run(optimizer, gradients[3:], RATES[3:])
    others, _ = drawn(dtype, seed=9)
    for name, p in others.items():
        p.write()[...] = values[name]
    again = Adafactor(others)
    again.restore(*saved)
    run(again, gradients[3:], RATES[3:])
    for name, p in parameters.items():
        assert p.dtype == dtype
        np.testing.assert_array_equal(others[name].numpy(), p.numpy())


def test_a_parameter_without_a_gradient_is_left_alone():
    parameters, gradients = drawn()
    before = parameters["matrix"].numpy().copy()
    run(Adafactor(parameters), [{**g, "matrix": None} for g in gradients])
    np.testing.assert_array_equal(parameters["matrix"].numpy(), before)


def test_a_row_without_gradients_stays_finite_and_where_it_is():
    p = Tensor(np.ones((3, 2)), requires_grad=True, dtype="float32")
    optimizer = Adafactor({"p": p})
    for _ in range(3):
        p.grad = np.array([[1, 2], [0, 0], [3, 4]], np.float32)
        optimizer.step(0.1)
    assert np.isfinite(p.numpy()).all()
    np.testing.assert_array_equal(p.numpy()[1], [1, 1])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("decay", 0), ("clip", -1), ("eps", 0), ("least_scale", math.nan), ("weight_decay", -0.1)],
)
def test_settings_that_cannot_be_are_refused_by_name(setting, value):
    with pytest.raises(ConfigError, match=setting):
        Adafactor({}, **{setting: value})
