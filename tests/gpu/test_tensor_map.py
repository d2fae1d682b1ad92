"""Tensor maps: what the driver is called with, what it would refuse, and how often it is asked."""

import ctypes

import pytest

from tinyplm.errors import DeviceError
from tinyplm.kernels import tensor_map
from tinyplm.kernels.tensor_map import TensorMap, check, encode_arguments, of_matrices

MAP = of_matrices(4096, "bfloat16", (3, 100, 72), (100 * 160, 160), (128, 64))


def test_a_map_is_innermost_first_and_strides_are_bytes():
    assert TensorMap(4096, "bfloat16", (72, 100, 3), (160, 100 * 160), (64, 128, 1)) == MAP


def test_where_there_is_only_one_its_stride_is_any_that_the_driver_takes():
    one_row = of_matrices(4096, "float16", (1, 1, 5), (0, 0), (64, 64))
    assert one_row.strides == (16, 16)
    check(one_row)
    one_matrix = of_matrices(4096, "float16", (1, 7, 40), (0, 96), (64, 64))
    assert one_matrix.strides == (96, 7 * 96)
    check(one_matrix)


def test_the_driver_is_called_as_its_header_says():
    # cuTensorMapEncodeTiled(map, type, rank, address, sizes, strides, box, steps, interleave, swizzle, promotion,
    # fill); CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 is 9, _FLOAT16 6, _FLOAT32 7; CU_TENSOR_MAP_SWIZZLE_128B 3.
    to, kind, rank, at, sizes, strides, box, steps, *modes = encode_arguments(MAP, 12_800)
    assert (to.value, kind.value, rank.value, at.value) == (12_800, 9, 3, 4096)
    assert (list(sizes), list(strides)) == ([72, 100, 3], [160, 16_000])
    assert (list(box), list(steps)) == ([64, 128, 1], [1, 1, 1])
    assert [mode.value for mode in modes] == [0, 3, 2, 0]
    assert [type(numbers)._type_ for numbers in (sizes, strides, box, steps)] == [
        ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32,
    ]  # fmt: skip
    assert encode_arguments(MAP._replace(dtype="float16"), 0)[1].value == 6
    assert encode_arguments(MAP._replace(dtype="float32"), 0)[1].value == 7


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"address": 4104}, "address 0x1008"),
        ({"strides": (168, 16_000)}, "multiples of 16"),
        ({"strides": (0, 16_000)}, "multiples of 16"),
        ({"strides": (-160, 16_000)}, "multiples of 16"),
        ({"strides": (160, 1 << 40)}, "2\\^40"),
        ({"sizes": (72, 0, 3)}, "1 to 2\\^32"),
        ({"box": (64, 257, 1)}, "side beyond"),
        ({"box": (32, 64, 1)}, "rows of 128 bytes"),
        ({"box": (64, 64)}, "2 sides of a box"),
    ],
)
def test_what_the_driver_refuses_is_told_in_words(wrong, said):
    check(MAP)
    with pytest.raises(DeviceError, match=said):
        check(MAP._replace(**wrong))


class Driver:
    """In the place of the driver's library: writes the number of its calls."""

    def __init__(self, code=0):
        self.code, self.calls = code, 0

    def cuTensorMapEncodeTiled(self, to, *_):  # noqa: N802 - the driver's name
        self.calls += 1
        assert to.value % 128 == 0
        ctypes.memset(to, self.calls, 128)
        return self.code


@pytest.fixture
def driver(monkeypatch):
    found = Driver()
    monkeypatch.setattr(tensor_map, "_driver", lambda: found)
    tensor_map.encoded.cache_clear()
    yield found
    tensor_map.encoded.cache_clear()


def test_the_driver_is_asked_once_for_a_map(driver):
    first, again = tensor_map.encoded(MAP), tensor_map.encoded(MAP)
    other = tensor_map.encoded(MAP._replace(address=8192))
    assert first is again
    assert driver.calls == 2
    for found, byte in ((first, 1), (other, 2)):
        assert found.shape == (1,)
        assert found.dtype == "V128"
        assert found.ctypes.data % 128 == 0
        assert bytes(found[0]) == bytes([byte]) * 128


def test_a_refusal_says_what_was_asked_for(driver):
    driver.code = 1
    with pytest.raises(DeviceError, match=r"its error 1.*context"):
        tensor_map.encoded(MAP)
