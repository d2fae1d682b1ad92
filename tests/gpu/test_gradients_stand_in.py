"""Every op on the stand-in for CuPy: gradients against derivatives, and each precision against float64.

In float64 the definitions compute, in the stand-in's plain array code; in others tinyplm's own kernels, emulated.
"""

import ml_dtypes
import numpy as np
import pytest
from device_gradients import assert_as_near_as_rounding, assert_float64_agrees

from tinyplm.autograd.cases import CASES

pytestmark = pytest.mark.device

OPS = pytest.mark.parametrize("name", sorted(CASES))


@OPS
def test_gradients_are_derivatives(plain_card, name):
    assert_float64_agrees(name, cases=2)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@OPS
def test_kernels_err_as_rounding_does(card, name, dtype):
    assert_as_near_as_rounding(name, dtype, cases=2)
