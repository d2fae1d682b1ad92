"""Every model on the stand-in for CuPy: what it learns and writes is the CPU's, with kernels and without."""

import pytest
from device_models import (
    CASES,
    WRITERS,
    assert_bfloat16_learns_alike,
    assert_float32_learns_alike,
    assert_learns_as_the_cpu,
    assert_writes_as_the_cpu,
)

pytestmark = pytest.mark.device


@pytest.mark.parametrize("name", CASES)
def test_a_model_learns_as_on_the_cpu(card, name):
    assert_learns_as_the_cpu(name)
    assert card.launched


@pytest.mark.parametrize("name", CASES)
def test_definitions_alone_learn_the_same(plain_card, name):
    assert_learns_as_the_cpu(name)
    assert not plain_card.launched


@pytest.mark.parametrize("name", WRITERS)
def test_a_model_writes_as_on_the_cpu(card, name):
    assert_writes_as_the_cpu(name)


def test_the_first_steps_of_a_training_are_the_cpus(card):
    assert_float32_learns_alike(graph=False, steps=3, rows=2)
    assert_bfloat16_learns_alike(graph=False, steps=2, rows=2)
