"""The shared parts of device code for tensor cores, in a product as small as can be: emulated, and compiled."""

import ml_dtypes
import numpy as np
import pytest

from tinyplm.errors import MissingExtraError
from tinyplm.kernels import compilers, cuda

pytestmark = pytest.mark.device

KERNEL = r"""
// C (16x16) = A (16x32) B (32x16), or B (16x32) turned. One warp; rows of 32 values are 64 bytes of shared memory.
template <class T> __device__ inline void product(const T *a, const T *b, float *c, bool turned) {
    DYNAMIC_SHARED(room);
    T *const own_a = reinterpret_cast<T *>(room), *const own_b = own_a + 16 * 32;
    const int lane = threadIdx.x;
    for (int i = lane; i < 64; i += 32) {
        copy_async(own_a + 8 * i, a + 8 * i, true);
    }
    close_copies();
    for (int i = lane; i < 64; i += 32) {
        copy_async(own_b + 8 * i, b + 8 * i, true);
    }
    close_copies();
    wait_for_copies<0>();
    __syncwarp();
    float sums[2][4] = {};
    for (int k = 0; k < 32; k += 16) {
        u32 left[4], right[4];
        load_tiles(left, own_a + (lane % 16) * 32 + k + lane / 16 * 8);
        if (turned) { // b is (16, 32): a row of it is a column
            load_tiles(right, own_b + (lane % 8 + lane / 16 * 8) * 32 + k + lane / 8 % 2 * 8);
        } else { // b is (32, 16)
            load_tiles_turned(right, own_b + (k + lane % 16) * 16 + lane / 16 * 8);
        }
        multiply_add(sums[0], left, right[0], right[1], T());
        multiply_add(sums[1], left, right[2], right[3], T());
    }
    for (int half = 0; half < 2; half++) {
        for (int i = 0; i < 4; i++) {
            c[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = sums[half][i];
        }
    }
}
#define MAKE(T) \
    extern "C" __global__ void __launch_bounds__(32) try_##T(const T *a, const T *b, float *c, i64 turned) { \
        product(a, b, c, turned != 0); \
    }
MAKE(bfloat16)
MAKE(float16)
"""


@pytest.fixture
def text(monkeypatch):
    parts = ("prelude", "tensor_cores")
    whole = "\n".join((cuda.FOLDER / f"{p}.cu").read_text(encoding="utf-8") for p in parts) + KERNEL
    monkeypatch.setattr(cuda, "source", lambda file: whole)
    return whole


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_tiles_lie_as_the_instructions_have_them(built, text, monkeypatch, dtype, turned):
    built.install(monkeypatch)
    rng = np.random.default_rng(0)
    a = rng.integers(-8, 9, (16, 32)).astype(dtype)
    b = rng.integers(-8, 9, (16, 32) if turned else (32, 16)).astype(dtype)
    c = np.zeros((16, 16), np.float32)
    name = f"try_{np.dtype(dtype).name}"
    cuda.launch("tensor_cores_tried", name, 1, 32, a, b, c, int(turned), shared=2 * 16 * 32 * 2)
    right = b.astype(np.float32).T if turned else b.astype(np.float32)
    np.testing.assert_array_equal(c, a.astype(np.float32) @ right)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_parts_compile(text, arch):
    try:
        compiler = compilers.best()
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert "warning" not in compiler.compile(text, arch).log
