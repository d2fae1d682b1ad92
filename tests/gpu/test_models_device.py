"""Every model on a card: what it learns and writes is the CPU's, also over two hundred steps."""

import warnings

import pytest
from device_models import (
    CASES,
    WRITERS,
    assert_bfloat16_learns_alike,
    assert_float32_learns_alike,
    assert_learns_as_the_cpu,
    assert_writes_as_the_cpu,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy")

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def device():
    if not cupy.cuda.is_available():
        pytest.skip("no device")


@pytest.mark.parametrize("name", CASES)
def test_a_model_learns_as_on_the_cpu(name):
    assert_learns_as_the_cpu(name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_model_writes_as_on_the_cpu(name):
    assert_writes_as_the_cpu(name)


def test_two_hundred_steps_in_float32_are_the_cpus():
    assert_float32_learns_alike()


def test_two_hundred_steps_in_bfloat16_stay_near_the_cpus():
    assert_bfloat16_learns_alike()
