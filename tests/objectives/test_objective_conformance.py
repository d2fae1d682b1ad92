"""What every objective does."""

import math

import numpy as np
import pytest
from objective_cases import CASES

import tinyplm
from tinyplm.errors import DataError
from tinyplm.objectives import OBJECTIVES

ALL = [
    pytest.param(case, id=f"{name} {number}")
    for name, cases in CASES.items()
    for number, case in enumerate(cases)
]


@pytest.fixture(params=ALL)
def case(request):
    return request.param


def prepared(case, seed=0, draw=0):
    return case.objective.prepare(case.batch(seed), rng=np.random.default_rng(draw))


def test_every_objective_has_a_case():
    assert set(CASES) == set(OBJECTIVES), "an objective without a case, or the reverse"
    for name, kind in OBJECTIVES.items():
        assert all(type(case.objective) is kind for case in CASES[name])


def test_the_same_seed_gives_the_same_batch_and_another_another_if_it_draws(case):
    first, again, other = prepared(case), prepared(case), prepared(case, draw=1)
    assert first.keys() == again.keys() == other.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    changed = any(not np.array_equal(first[key], other[key]) for key in first)
    assert changed == case.draws


def test_an_objective_that_does_not_draw_leaves_the_generator_alone(case):
    if case.draws:
        pytest.skip("draws")
    rng = np.random.default_rng(0)
    case.objective.prepare(case.batch(0), rng=rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_the_given_batch_is_left_as_it_is(case):
    batch = case.batch(0)
    before = {key: value.copy() for key, value in batch.items()}
    made = case.objective.prepare(batch, rng=np.random.default_rng(0))
    assert made is not batch
    case.objective.loss(case.model(), made)
    assert batch.keys() == before.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(batch[key], value)


def test_frozen_arrays_can_be_prepared(case):
    batch = case.batch(0)
    for value in batch.values():
        value.flags.writeable = False
    case.objective.prepare(batch, rng=np.random.default_rng(0))


def test_nothing_to_predict_is_said(case):
    for batch in case.nothing:
        with pytest.raises(DataError, match=r"nothing to predict|label|chosen"):
            case.objective.loss(
                case.model(), case.objective.prepare(batch, rng=np.random.default_rng(0))
            )


def test_a_model_that_predicts_uniformly_loses_exactly_the_log_of_the_number_of_classes(case):
    loss = case.objective.loss(case.uniform(), prepared(case)).item()
    # Sums of a few dozen float64 numbers.
    assert math.isclose(loss, math.log(case.classes), rel_tol=1e-14)


def test_the_gradient_of_the_loss_is_its_derivative(case):
    model, batch = case.model(), prepared(case)
    tinyplm.check_grad(lambda: case.objective.loss(model, batch), wrt=model.parameters())
    counts = {term: 3 * n for term, n in case.objective.counts(batch).items()}
    tinyplm.check_grad(
        lambda: case.objective.loss(model, batch, counts=counts), wrt=model.parameters()
    )


@pytest.mark.parametrize("cuts", [[2], [1], [3], [1, 2, 3]], ids=str)
def test_losses_of_small_batches_add_up_to_that_of_the_large_one(case, cuts):
    model, large = case.model(), prepared(case)
    counts = case.objective.counts(large)
    whole = case.objective.loss(model, large)
    whole.backward()
    expected = [p.grad for p in model.parameters()]
    model.clear_gradients()
    total = 0.0
    for start, stop in zip([0, *cuts], [*cuts, 4], strict=True):
        small = {key: value[start:stop] for key, value in large.items()}
        part = case.objective.loss(model, small, counts=counts)
        part.backward()
        total += part.item()
    assert math.isclose(total, whole.item(), rel_tol=1e-12)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        assert abs(p.grad - gradient).max() <= 1e-12 * abs(gradient).max()


def test_counts_of_small_batches_add_up(case):
    large = prepared(case)
    parts = [
        case.objective.counts({key: value[i : i + 1] for key, value in large.items()})
        for i in range(4)
    ]
    for term, count in case.objective.counts(large).items():
        assert isinstance(count, float)
        assert sum(part[term] for part in parts) == count
