"""The readable kernels on a GPU: the simulator's checks, with the sizes of blocks that they are launched with."""

import numba_cuda_checks
import pytest

from tinyplm.kernels.registry import KERNELS

CHECKS = numba_cuda_checks.checks(numba_cuda_checks.Device())

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Grid size"),  # which Numba finds too small
]


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    """CuPy, whose empty arrays are full of NaN here; the test is skipped without a device."""
    pytest.importorskip("numba", reason="comes with the extras 'cuda12' and 'cuda13'")
    cupy = pytest.importorskip("cupy", reason="comes with the extras 'cuda12' and 'cuda13'")
    if not cupy.cuda.is_available():
        pytest.skip("no GPU")
    monkeypatch.setattr(cupy, "empty", numba_cuda_checks.poisoned(cupy.empty))
    return cupy


@pytest.mark.parametrize("name", CHECKS)
def test_on_a_device_a_kernel_is_as_accurate_as_its_definition(name):
    CHECKS[name]()


def test_a_kernel_gives_the_same_bits_again(cupy):
    x = cupy.random.standard_normal((65, 777), cupy.float32)
    for name, arguments in {
        "product": (x, x.T),
        "softmax_forward": (x, 1),
        "layer_norm_forward": (x, None, x[0].copy(), x[1].copy(), 1e-5),
    }.items():
        with KERNELS[name].using("numba-cuda"):
            first, again = (KERNELS[name](*arguments) for _ in range(2))
        for a, b in zip(
            *(r if isinstance(r, tuple) else (r,) for r in (first, again)), strict=True
        ):
            assert bool((a == b).all()), name


def test_it_computes_on_the_stream_that_cupy_is_on(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, KERNELS["product"].using("numba-cuda"):
        a = cupy.ones((512, 512), cupy.float32)
        for _ in range(20):
            a = KERNELS["product"](a, a) / 512  # each waits for the one before
        assert bool((a == 1).all())
