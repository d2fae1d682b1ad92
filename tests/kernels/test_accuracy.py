"""Kernels against float64, and every variant against its definition."""

import math

import numpy as np
import pytest
from accuracy import as_accurate_as, assert_near, wide
from kernel_cases import KERNEL_CASES, SHAPES

from tinyplm.kernels import threads as cores
from tinyplm.kernels.compiled import exponential, parallel
from tinyplm.kernels.erf import erf
from tinyplm.kernels.registry import KERNELS

VARIANTS = [(name, v) for name, k in KERNELS.items() for v in k.variants if v.library == "numpy"]
IDS = [f"{name}-{v.name}" for name, v in VARIANTS]
COMPILED = [(name, v) for name, v in VARIANTS if v.name == "numba"]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
@pytest.mark.parametrize("name", sorted(KERNEL_CASES))
def test_the_definition_in_float32_is_within_rounding_of_float64(name, shape):
    """An error of 32 units in the last place of the largest value is allowed, for sums of up to 1,000 terms."""
    case, define = KERNEL_CASES[name], KERNELS[name].definition
    single = case.arguments(*shape, np.float32)
    double = tuple(a.astype(np.float64) if np.asarray(a).dtype == np.float32 else a for a in single)
    exact, found = case.call(define, *double), case.call(define, *single)
    for e, f in zip(exact, found, strict=True):
        scale = max(1.0, np.abs(e).max(initial=0))
        assert f.shape == e.shape
        error = np.abs(wide(f) - e).max(initial=0)
        assert error <= 32 * np.finfo(np.float32).eps * scale


@shapes
@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=IDS)
def test_a_variant_is_as_accurate_as_the_definition(name, variant, shape):
    case = KERNEL_CASES[name]
    arguments = case.arguments(*shape, np.float32)
    if variant.function is None:
        pytest.skip("cannot be built here")
    with KERNELS[name].using(variant.name):
        as_accurate_as(
            lambda *a: case.call(KERNELS[name].definition, *a),
            lambda *a: case.call(KERNELS[name], *a),
            *arguments,
        )


@pytest.mark.parametrize(("name", "variant"), COMPILED, ids=[name for name, _ in COMPILED])
def test_a_compiled_variant_takes_float32_and_float64(name, variant):
    case = KERNEL_CASES[name]
    for dtype, near in ((np.float32, 1e-5), (np.float64, 1e-13)):
        arguments = case.arguments(6, 8, dtype)
        if not case.through:
            assert variant.when(*arguments)
        fast = case.call(variant.function, *arguments)
        plain = case.call(KERNELS[name].definition, *arguments)
        for a, b in zip(fast, plain, strict=True):
            assert a.dtype == b.dtype
            assert_near(a, b, near)


@pytest.mark.parametrize("dtype", [np.float16])
@pytest.mark.parametrize(("name", "variant"), COMPILED, ids=[name for name, _ in COMPILED])
def test_a_compiled_variant_leaves_other_types_to_the_definition(name, variant, dtype):
    case = KERNEL_CASES[name]
    if not case.through:
        assert not variant.when(*case.arguments(6, 8, dtype))


@pytest.mark.parametrize(("name", "variant"), COMPILED, ids=[name for name, _ in COMPILED])
def test_a_kernel_gives_the_same_for_any_strides(name, variant):
    case = KERNEL_CASES[name]
    plain = case.arguments(6, 8, np.float32)
    expected = case.call(KERNELS[name], *plain)
    for i, array in enumerate(plain):
        if not isinstance(array, np.ndarray) or i in case.in_place or array.ndim < 2:
            continue
        for strided in (np.repeat(array, 2, axis=-1)[..., ::2], np.asfortranarray(array)):
            found = case.call(KERNELS[name], *plain[:i], strided, *plain[i + 1 :])
            for a, b in zip(found, expected, strict=True):
                assert_near(a, b, 1e-5)


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=IDS)
def test_a_variant_gives_the_same_bits_again_and_changes_no_input(
    monkeypatch, name, variant, threads
):
    monkeypatch.setattr(cores, "available", lambda: int(threads))
    monkeypatch.setattr(cores, "_team", None)
    case = KERNEL_CASES[name]
    if variant.function is None:
        pytest.skip("cannot be built here")
    arguments = case.arguments(301, 517, np.float32)
    own = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    first, again = (case.call(variant.function, *arguments) for _ in range(2))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in again]
    as_accurate_as(
        lambda *a: case.call(KERNELS[name].definition, *a),
        lambda *a: case.call(variant.function, *a),
        *arguments,
    )
    case.call(variant.function, *own)
    for i, (a, b) in enumerate(zip(own, arguments, strict=True)):
        if i not in case.in_place and isinstance(a, np.ndarray):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5), (5, 20), (4, 40)], ids=str)
@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=IDS)
def test_a_variant_gives_the_same_bits_wherever_its_arrays_lie(name, variant, shape, dtype):
    """A loop that adds up and stores would be vectorised only where the two lie far enough apart."""
    case = KERNEL_CASES[name]
    arguments = case.arguments(*shape, dtype)
    if variant.function is None or not (case.through or variant.when(*arguments)):
        pytest.skip("does not apply here")
    rng = np.random.default_rng(0)
    held, found = [()] * 16, set()
    for _ in range(200):
        again = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        results = case.call(variant.function, *again)
        held[rng.integers(16)] = (again, results)  # their places are not free for the next ones
        found.add(tuple(a.tobytes() for a in results))
    assert len(found) == 1


def test_erf_is_within_two_units_in_the_last_place():
    x = np.concatenate(
        [np.linspace(-7, 7, 20_001), np.geomspace(1e-300, 1, 500), [0.84375, 1.25, 1 / 0.35, 6.0]]
    )
    right = np.array([math.erf(v) for v in x])
    assert (np.abs(erf(x) - right) <= 2 * np.spacing(np.abs(right))).all()


def test_erf_in_float32_is_the_float64_value_rounded():
    x = np.linspace(-5, 5, 10_001, dtype=np.float32)
    right = np.array([math.erf(v) for v in x.tolist()])
    assert erf(x).dtype == np.float32
    assert (erf(x) == right.astype(np.float32)).mean() > 0.999
    assert (np.abs(wide(erf(x)) - right) <= np.spacing(np.abs(right).astype(np.float32))).all()


def test_erf_has_its_limits_and_signs():
    x = np.array([np.inf, -np.inf, 0.0, -0.0, np.nan, 5e-324])
    y = erf(x)
    assert y[:2].tolist() == [1.0, -1.0]
    assert np.signbit(y).tolist()[2:4] == [False, True]
    assert np.isnan(y[4])
    assert y[5] >= 0


def _exp_part(team, part, start, stop, x, y):
    for i in range(start, stop):
        y[i] = exponential(x[i])


@pytest.fixture(scope="module")
def compiled_exp():
    pytest.importorskip("numba")
    loop = parallel(_exp_part)

    def run(x):
        y = np.empty_like(x)
        loop(x.size, x, y)
        return y

    return run


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(np.float32, -87, 88), (np.float64, -708, 709)], ids=["f", "d"]
)
def test_the_compiled_exponential_is_within_two_units_in_the_last_place(
    compiled_exp, dtype, low, high
):
    x = np.linspace(low, high, 200_001).astype(dtype)
    right = np.exp(x.astype(np.longdouble))
    assert (np.abs(compiled_exp(x) / right - 1)).max() <= 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_compiled_exponential_has_its_limits(compiled_exp, dtype):
    x = np.array([-np.inf, -1e30, -709, 0, 710, 1e30, np.inf, np.nan], dtype)
    assert compiled_exp(x)[:-1].tolist() == [0, 0, 0, 1, np.inf, np.inf, np.inf]
    assert np.isnan(compiled_exp(x)[-1])
