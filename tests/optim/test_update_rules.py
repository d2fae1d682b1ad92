"""AdamW and SGD against their algorithms in scalar loops."""

import math

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.errors import ConfigError
from tinyplm.optim import SGD, AdamW

SHAPES = {"matrix": (3, 4), "gain": (4,), "cube": (2, 2, 2), "scalar": ()}
RATES = [0.1, 0.02, 0.3, 0.0, 0.05, 0.01]
SHRINKS = [1.0, 0.5, 1.0, 1.0, 0.25, 1.0]


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


def run(optimizer, gradients, rates=RATES, shrinks=SHRINKS):
    for given, rate, shrink in zip(gradients, rates, shrinks, strict=True):
        for name, p in optimizer.parameters.items():
            p.grad = None if given.get(name) is None else given[name].copy()
        optimizer.step(rate, shrink=shrink)


def adamw_in_a_loop(p, gradients, decay, b1=0.8, b2=0.95, eps=1e-3):
    m = v = 0.0
    for t, (g, rate, shrink) in enumerate(zip(gradients, RATES, SHRINKS, strict=True), 1):
        g *= shrink
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        p -= rate * decay * p
        p -= rate * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
    return p


def sgd_in_a_loop(p, gradients, decay, momentum):
    u = 0.0
    for g, rate, shrink in zip(gradients, RATES, SHRINKS, strict=True):
        u = momentum * u + g * shrink
        p -= rate * (u + decay * p)
    return p


def assert_each_value_follows(loop, parameters, start, gradients, decay, tolerance):
    for name, p in parameters.items():
        share = decay if len(SHAPES[name]) >= 2 else 0.0  # matrices only
        expected = np.empty(SHAPES[name])
        for place in np.ndindex(SHAPES[name]):
            series = [float(g[name][place]) for g in gradients]
            expected[place] = loop(float(start[name][place]), series, share)
        np.testing.assert_allclose(p.array, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adamw_follows_its_algorithm(dtype, tolerance, decay):
    parameters, gradients = drawn(dtype)
    start = {name: p.numpy() for name, p in parameters.items()}
    optimizer = AdamW(parameters, beta_1=0.8, beta_2=0.95, eps=1e-3, weight_decay=decay)
    run(optimizer, gradients)
    assert all(p.dtype == dtype for p in parameters.values())
    assert_each_value_follows(adamw_in_a_loop, parameters, start, gradients, decay, tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_sgd_follows_its_algorithm(momentum, decay):
    parameters, gradients = drawn()
    start = {name: p.numpy() for name, p in parameters.items()}
    run(SGD(parameters, momentum=momentum, weight_decay=decay), gradients)
    assert_each_value_follows(
        lambda p, g, share: sgd_in_a_loop(p, g, share, momentum),
        parameters, start, gradients, decay, 1e-13,
    )  # fmt: skip


def test_the_first_adam_step_has_the_length_of_the_learning_rate_whatever_the_gradient():
    for size in (1e-6, 1.0, 1e6):
        p = Tensor(np.array([1.0, -1.0]), requires_grad=True)
        optimizer = AdamW({"p": p}, eps=1e-20)
        p.grad = np.array([size, -size])
        optimizer.step(0.25)
        np.testing.assert_allclose(p.array, [0.75, -0.75], rtol=1e-12)


@pytest.mark.parametrize("make", [AdamW, lambda p: SGD(p, momentum=0.9, weight_decay=0.1)])
def test_a_parameter_without_a_gradient_is_left_alone(make):
    parameters, gradients = drawn()
    before = parameters["matrix"].numpy()
    run(make(parameters), [g | {"matrix": None} for g in gradients])
    np.testing.assert_array_equal(parameters["matrix"].array, before)
    assert not np.array_equal(parameters["gain"].array, drawn()[0]["gain"].array)


@pytest.mark.parametrize(
    "make",
    [AdamW, SGD, lambda p: SGD(p, momentum=0.9, weight_decay=0.1)],
    ids=["AdamW", "SGD", "momentum"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_going_on_from_a_saved_state_gives_the_same_bits(make, dtype):
    parameters, gradients = drawn(dtype)
    whole = make(parameters)
    run(whole, gradients)

    halfway, _ = drawn(dtype)
    first = make(halfway)
    run(first, gradients[:3], RATES[:3], SHRINKS[:3])
    arrays = {name: np.array(a) for name, a in first.arrays().items()}
    state = dict(first.state())
    resumed = {n: Tensor(p.numpy(), requires_grad=True) for n, p in halfway.items()}
    second = make(resumed)
    second.restore(arrays, state)
    run(second, gradients[3:], RATES[3:], SHRINKS[3:])
    for name, p in parameters.items():
        np.testing.assert_array_equal(resumed[name].array, p.array)
    assert second.state() == whole.state()
    for name, a in whole.arrays().items():
        np.testing.assert_array_equal(second.arrays()[name], a)
        assert a.dtype == dtype


def test_the_state_is_small_numbers_and_arrays_named_after_parameters():
    parameters, gradients = drawn()
    optimizer = AdamW(parameters)
    assert set(optimizer.arrays()) == {f"{k}.{n}" for n in SHAPES for k in ("mean", "square")}
    run(optimizer, gradients)
    assert optimizer.state() == {"steps": 6}
    assert SGD(parameters).arrays() == {}
    assert set(SGD(parameters, momentum=0.5).arrays()) == set(SHAPES)


@pytest.mark.parametrize("make", [AdamW, SGD, lambda p: SGD(p, momentum=0.9)])
def test_an_update_changes_no_gradient(make):
    parameters, gradients = drawn()
    optimizer = make(parameters)
    for name, p in parameters.items():
        p.grad = gradients[0][name].copy()
    optimizer.step(0.1, shrink=0.5)
    for name, p in parameters.items():
        np.testing.assert_array_equal(p.grad, gradients[0][name])


def test_an_update_between_forward_and_backward_is_noticed():
    from tinyplm.errors import GraphError

    for make in (AdamW, SGD):
        w = Tensor(np.ones((2, 2)), requires_grad=True)
        loss = (w * w).sum()
        w.grad = np.ones((2, 2))
        make({"w": w}).step(0.1)
        with pytest.raises(GraphError, match="changed"):
            loss.backward()


@pytest.mark.parametrize(
    "settings",
    [
        *({"beta_1": b} for b in (-0.1, 1.0, math.nan)),
        *({"beta_2": b} for b in (-0.1, 1.0, math.nan)),
        *({"eps": e} for e in (0.0, -1e-8, math.nan, math.inf)),
        *({"weight_decay": d} for d in (-0.1, math.nan, math.inf)),
    ],
    ids=str,
)
def test_adamw_refuses_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        AdamW(drawn()[0], **settings)


@pytest.mark.parametrize(
    "settings",
    [
        *({"momentum": m} for m in (-0.1, 1.0, math.nan)),
        *({"weight_decay": d} for d in (-0.1, math.nan, math.inf)),
    ],
    ids=str,
)
def test_sgd_refuses_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SGD(drawn()[0], **settings)
