"""Every op on a card: gradients against derivatives, and each precision against float64.

In float64 the definitions compute, in CuPy's plain array code; in others tinyplm's own kernels.
"""

import warnings

import ml_dtypes
import numpy as np
import pytest
from device_gradients import assert_as_near_as_rounding, assert_float64_agrees

from tinyplm.autograd.cases import CASES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy")

pytestmark = pytest.mark.gpu

OPS = pytest.mark.parametrize("name", sorted(CASES))


@pytest.fixture(autouse=True, scope="module")
def device():
    if not cupy.cuda.is_available():
        pytest.skip("no device")


@OPS
def test_gradients_are_derivatives(name):
    assert_float64_agrees(name, cases=10)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@OPS
def test_kernels_err_as_rounding_does(name, dtype):
    assert_as_near_as_rounding(name, dtype, cases=20)
