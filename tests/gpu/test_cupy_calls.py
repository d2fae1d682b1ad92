"""What tinyplm asks of CuPy below its public functions, as far as CuPy tells without a card; skipped without CuPy.

Names and parameters of its public functions are compared in test_stand_in.py.
"""

import ctypes
import warnings
from importlib import import_module

import numpy as np
import pytest

from tinyplm import backend
from tinyplm.errors import MissingExtraError
from tinyplm.kernels import compilers, cuda

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what CuPy says of its surroundings
    cupy = pytest.importorskip("cupy", minversion="14.2", reason="comes with the extra 'device'")

pytestmark = pytest.mark.device

CALLS = {
    "cupy.cuda.function": [
        "Module.load(self, bytes cubin)",
        "Module.get_function(self, name)",
        "Function(Module module, str funcname)",
    ],
    "cupy_backends.cuda.api.driver": ["funcSetAttribute(intptr_t f, int attribute, int value)"],
    "cupy_backends.cuda.api.runtime": [
        "getDevice() -> int",
        "getDeviceCount() -> int",
        "getDeviceProperties(int device)",
        "memGetInfo()",
        "driverGetVersion() -> int",
        "runtimeGetVersion() -> int",
    ],
    "cupy_backends.cuda.libs.nvrtc": [
        "createProgram(str src, str name, headers, include_names) -> intptr_t",
        "compileProgram(intptr_t prog, options)",
        "getCUBIN(intptr_t prog) -> bytes",
        "getProgramLog(intptr_t prog) -> str",
        "destroyProgram(intptr_t prog)",
        "getVersion() -> tuple",
    ],
    "cupy.cuda.memory": [
        "MemoryPointer.copy_from_host_async(self, mem, size_t size, stream=None)",
        "MemoryPointer.copy_from_device_async(self, MemoryPointer src, size_t size, stream=None)",
        "MemoryPointer.copy_to_host_async(self, mem, size_t size, stream=None)",
        "MemoryPool.malloc(self, size_t size) -> MemoryPointer",
        "MemoryPool.free_all_blocks(self, stream=None)",
    ],
    "cupy.cuda.pinned_memory": ["alloc_pinned_memory(size_t size) -> PinnedMemoryPointer"],
    "cupy.cuda.graph": ["Graph.launch(self, stream=None)"],
}
"""As the first line of what Cython writes down of each."""


@pytest.mark.parametrize(
    ("module", "call"), [(module, call) for module in CALLS for call in CALLS[module]]
)
def test_what_is_called_is_there_and_takes_what_it_is_given(module, call):
    found = import_module(module)
    for name in call.split("(")[0].split("."):
        found = getattr(found, name)
    assert found.__doc__.splitlines()[0] == call


@pytest.mark.parametrize(
    "value",
    [None, 7, -7, True, 2.5, np.uint32(1 << 31), np.uint64(1 << 63), np.int64(-1), np.int32(5)],
)
def test_a_number_is_passed_with_the_width_that_kernels_declare(value):
    """CuPy hands the driver the address of its own copy of a NumPy number."""
    from cupy._core._scalar import CScalar

    given = cuda.passed(value)
    held = CScalar(given)
    assert held.dtype == given.dtype
    assert ctypes.string_at(held.ptr, given.dtype.itemsize) == given.tobytes()
    wide = {float: 4, np.uint32: 4}.get(type(value), 8)
    assert given.dtype.itemsize == wide


def test_a_structure_is_passed_by_its_bytes():
    """A tensor map is 128 of them; an array of NumPy's of any other size than one is refused by CuPy."""
    from cupy.cuda.function import CNumpyArray

    blob = np.arange(128, dtype=np.uint8).view("V128")
    assert blob.shape == (1,)
    assert cuda.passed(blob) is blob
    assert ctypes.string_at(CNumpyArray(blob).ptr, 128) == blob.tobytes()


def test_no_room_is_a_memory_error():
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)


def test_a_capability_is_text_without_a_point():
    """Said by the docstring alone, as asking needs a card."""
    assert isinstance(cupy.cuda.Device.compute_capability.__doc__, str)
    assert "string '35'" in cupy.cuda.Device.compute_capability.__doc__


def test_both_ways_to_nvrtc_make_the_same_machine_code():
    """CuPy's leaves out a last byte, which is put back."""
    by_cupy, packaged = compilers.cupy_nvrtc(), compilers.packaged_nvrtc()
    if by_cupy is None or packaged is None or not by_cupy.name.startswith(packaged.name):
        pytest.skip("needs CuPy and nvidia-cuda-nvrtc, of one version")
    text = cuda.source("dropout")
    one, other = (compiler.compile(text, "sm_80") for compiler in (by_cupy, packaged))
    assert one.cubin == other.cubin
    assert by_cupy.major == packaged.major
    lines = [
        [x for x in log.splitlines() if "Compile time" not in x] for log in (one.log, other.log)
    ]
    assert lines[0] == lines[1]


def test_without_a_card_the_error_is_the_one_that_is_waited_for():
    if cupy.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(MissingExtraError, match="no GPU answered"):
        backend.library("cuda")
    runtime = cupy.cuda.runtime
    assert runtime.driverGetVersion() == 0 or backend.driver_version() is not None
    assert runtime.runtimeGetVersion() // 1000 == int(
        backend.cupy_packages()[0].split("-cuda")[1][:2]
    )


def test_a_function_takes_blocks_threads_arguments_and_shared_memory():
    """One that was never loaded comes as far as the driver, and no further; another word would be a TypeError."""
    if cupy.cuda.is_available():
        pytest.skip("there is a card, on which this would be launched")
    function = cupy.cuda.function.Function
    empty = function.__new__(function)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        empty((1,), (32,), (np.int64(1),), shared_mem=1024)
    with pytest.raises(TypeError, match="shared_memory"):
        empty((1,), (32,), (np.int64(1),), shared_memory=1024)
    assert isinstance(empty.ptr, int)
