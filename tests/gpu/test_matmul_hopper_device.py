"""Hopper's products on a card: exact on whole numbers in every layout, near in others, and the same bits twice."""

import warnings

import ml_dtypes  # noqa: F401 - bfloat16 by its name
import numpy as np
import pytest
from matmul_cases import CASES, LETTERS, Case, drawn

from tinyplm.kernels import cuda, matmul_cuda, matmul_hopper, matmul_plan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy")

pytestmark = pytest.mark.gpu
TILES = [tile.name.removeprefix("hopper ") for tile in matmul_hopper.TILES]
LARGE = [Case(tile, letters, (1000, 1160, 4096)) for tile in TILES for letters in LETTERS]
"""Sums of 4,096 products of whole numbers up to 8 are exact in float32."""


@pytest.fixture(autouse=True, scope="module")
def hopper(real_card):
    if cuda.architecture() != "sm_90a":
        pytest.skip("not a Hopper card")


def computed(case, a, b, out=None, **more):
    """By the plan that a case names; into NaN, which also lies behind it, if nothing else is given."""
    shape = (*[n for n in case.batch if n is not None][:1], *case.sizes[:2])
    room = cupy.full(int(np.prod(shape)) + 64, np.nan, np.float32)
    with matmul_plan.forced(f"hopper {case.tile}", case.split):
        found = matmul_cuda.compute(a, b, room[:-64].reshape(shape) if out is None else out, **more)
    cupy.cuda.runtime.deviceSynchronize()  # so that a fault is told of the case that made it
    assert bool(cupy.isnan(room[-64:]).all())
    return found


@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_products_of_whole_numbers_are_exact(case):
    a, b = drawn(np.random.default_rng(0), case, np.dtype(case.dtype), cupy)
    found = cupy.asnumpy(computed(case, a, b))
    right = cupy.asnumpy(a).astype(np.float64) @ cupy.asnumpy(b).astype(np.float64)
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("tile", TILES)
def test_random_products_are_near_and_the_same_bits_come_twice(tile):
    """The error of one rounding to bfloat16 is at most 2^-9 of a value, 1.7e-3 on the whole at most."""
    rng, case = np.random.default_rng(), Case(tile, ("n", "n"), (1031, 1160, 2056))
    rows, columns, terms = case.sizes
    a, b = (
        cupy.asarray(rng.standard_normal(shape).astype("bfloat16"))
        for shape in ((rows, terms), (terms, columns))
    )
    first, again = (
        computed(case, a, b, cupy.full((rows, columns), np.nan, "bfloat16")) for _ in range(2)
    )
    assert bool((first.view(np.uint16) == again.view(np.uint16)).all())
    right = cupy.asnumpy(a).astype(np.float64) @ cupy.asnumpy(b).astype(np.float64)
    error = cupy.asnumpy(first).astype(np.float64) - right
    assert np.linalg.norm(error) <= 3e-3 * np.linalg.norm(right)


@pytest.mark.parametrize("last", ["gelu", "slope_tanh", "plain"])
@pytest.mark.parametrize("tile", ["128x256 together", "128x128 turns"])
@pytest.mark.parametrize("columns", [1160, 1161])
def test_endings_agree_with_those_of_the_portable_kernels(tile, last, columns):
    """Sums are exact, so that both tiers see the same ones."""
    rng, kind = np.random.default_rng(1), np.dtype("bfloat16")
    case = Case(tile, ("n", "t"), (1000, columns, 72))
    a, b = drawn(rng, case, kind, cupy)
    a /= cupy.asarray(64, kind)
    shape = case.sizes[:2]
    given = {"bias": cupy.asarray(rng.integers(-8, 9, columns).astype(kind)), "last": last}
    if last == "gelu":
        given["before"] = cupy.full(shape, np.nan, kind)
    else:
        given["other"] = cupy.asarray(rng.standard_normal(shape).astype(kind))
    own = computed(case, a, b, cupy.full(shape, np.nan, kind), **given)
    own_before = given["before"].copy() if "before" in given else None
    with matmul_plan.forced("128x128"):
        other = matmul_cuda.compute(a, b, cupy.full(shape, np.nan, kind), **given)
    assert bool((own.view(np.uint16) == other.view(np.uint16)).all())
    if own_before is not None:
        assert bool((own_before.view(np.uint16) == given["before"].view(np.uint16)).all())
