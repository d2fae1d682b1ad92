"""The kernels on a device: against the definitions, into poisoned memory, and twice."""

import warnings

import numpy as np
import pytest
from accuracy import assert_same_bits
from device_cases import DTYPES, SHAPES, VARIANTS, arguments, assert_right
from kernel_cases import KERNEL_CASES

from tinyplm.kernels import cuda, dropout, layer_norm
from tinyplm.kernels.registry import KERNELS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy")

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("real_card")]
HAS_BFLOAT16 = int(cupy.__version__.split(".")[0]) >= 14
KINDS = [dtype for dtype in DTYPES if HAS_BFLOAT16 or dtype.name != "bfloat16"]
TYPES = pytest.mark.parametrize("dtype", KINDS, ids=lambda d: d.name)
NAMES = pytest.mark.parametrize("name", VARIANTS)
LARGE = [(70, 768), (301, 517), (2000, 64), (9, 4096), (3, 50_257), (1100, 1), (1, 70_001)]


def run(name, given):
    """The results of the device's variant, in NumPy; waits, so that a fault is this kernel's."""
    case, variant = KERNEL_CASES[name], VARIANTS[name]
    there = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in given]
    assert variant.when(*there)
    before = [a.copy() if isinstance(a, cupy.ndarray) else a for a in there]
    with KERNELS[name].using("cuda"):
        result = KERNELS[name](*there)
    cupy.cuda.Device().synchronize()
    for i, (a, b) in enumerate(zip(there, before, strict=True)):
        if isinstance(a, cupy.ndarray) and i not in case.in_place:
            assert a.tobytes() == b.tobytes()
    found = [there[i] for i in case.in_place] if case.in_place else result
    found = found if isinstance(found, tuple | list) else (found,)
    return tuple(cupy.asnumpy(a) for a in found)


@TYPES
@pytest.mark.parametrize("shape", [s for s in SHAPES + LARGE if 0 not in s], ids=str)
@NAMES
def test_a_kernel_computes_what_its_definition_says_and_again(rooms, name, shape, dtype):
    given = arguments(name, shape, dtype)
    found, again = run(name, given), run(name, given)
    assert_right(name, given, found, dtype)
    for a, b in zip(found, again, strict=True):
        assert a.tobytes() == b.tobytes()


@NAMES
def test_arrays_may_begin_anywhere(name):
    for dtype in KINDS:
        given = arguments(name, (3, 96), dtype)
        apart = []
        for a in given:
            if isinstance(a, np.ndarray):
                room = cupy.empty(a.size + 1, a.dtype)
                room[1:] = cupy.asarray(a.reshape(-1))
                apart.append(room[1:].reshape(a.shape))
            else:
                apart.append(a)
        assert_right(name, given, run(name, apart), dtype)


@TYPES
def test_a_team_adds_up_many_rows(rooms, dtype):
    for width in (768, 33, 1032, 1037, 8200):
        given = arguments(
            "layer_norm_pullback", (2 * max(layer_norm.TEAMS.values()) + 3, width), dtype
        )
        assert_right("layer_norm_pullback", given, run("layer_norm_pullback", given), dtype)


@TYPES
@pytest.mark.parametrize(("n", "rows"), [(31, 2), (5000, 3), (5000, 70_000), (600, 1)])
def test_whole_numbers_are_added_up_exactly(rooms, n, rows, dtype):
    rng = np.random.default_rng(1)
    ids, g = rng.integers(0, rows, n), rng.integers(-1, 2, (n, 8)).astype(dtype)
    (found,) = run("add_rows", (g, ids, rows))
    expected = np.zeros((rows, 8))
    np.add.at(expected, ids, g.astype(np.float64))
    assert_same_bits(found, expected.astype(np.float32))


@TYPES
def test_dropout_has_the_bits_of_the_cpu(rooms, dtype):
    x = np.random.default_rng(0).standard_normal((370, 290)).astype(dtype)
    for rate, seed in ((0.1, 0), (0.5, 7), (0.9, (1 << 62) + 12345)):
        (found,) = run("dropout_forward", (x, rate, seed))
        expected = dropout.dropout_forward.definition(x.astype(np.float32), rate, seed)
        assert_same_bits(found, expected.astype(dtype))


def test_what_is_not_finite_is_as_in_the_definition(rooms):
    inf, nan = np.inf, np.nan
    x = np.array(
        [[inf, 1, 2, 3], [-inf, 1, 2, 3], [nan, 1, 2, 3], [-inf] * 4, [88, -88, 1e30, -1e30]],
        np.float32,
    )
    g = np.full_like(x, 2)
    for name, given in (
        ("softmax_forward", (x, 1)),
        ("gelu_forward", (x,)),
        ("gelu_tanh_forward", (x,)),
        ("gelu_pullback", (g, x)),
        ("gelu_tanh_pullback", (g, x)),
    ):
        with np.errstate(all="ignore"):
            expected = KERNELS[name].definition(*given)
        np.testing.assert_allclose(run(name, given)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_kernel_is_chosen_without_being_asked_for(monkeypatch):
    seen, launch = [], cuda.launch

    def noted(file, kernel, *rest):
        seen.append(kernel)
        launch(file, kernel, *rest)

    monkeypatch.setattr(cuda, "launch", noted)
    KERNELS["gelu_forward"](cupy.ones((4, 8), np.float32))
    assert seen == ["gelu_forward_float32"]
