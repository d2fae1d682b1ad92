"""Compiling, keeping and launching, with a stand-in for CuPy; and what is said where something is missing."""

import subprocess
import sys
import types

import numpy as np
import pytest

from tinyplm import backend
from tinyplm.errors import DeviceError, DeviceMemoryError, MissingExtraError, TinyplmWarning
from tinyplm.kernels import compilers, cuda
from tinyplm.kernels.registry import KERNELS


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(cuda, "_allowed", {})
    caches = (compilers.best, cuda.usable, cuda._module, cuda._function)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def compiler(monkeypatch):
    """Counts what it is given."""
    given = []

    def compile_text(text, arch):
        given.append(arch)
        return compilers.Compiled(b"code for " + arch.encode(), "")

    known = compilers.Compiler("a compiler 1.0", compile_text)
    monkeypatch.setattr(compilers, "found", lambda: iter([known]))
    return given


@pytest.fixture
def cupy(monkeypatch):
    """As much of CuPy as a launch touches."""
    module = types.ModuleType("cupy")
    module.ndarray = type("ndarray", (), {})
    module.launched, module.loaded, module.capability = [], [], "90"
    module.most_shared = {}

    class Module:
        def load(self, code):
            module.loaded.append(code)

        def get_function(self, name):
            return Function(name)

    class Function:
        def __init__(self, name):
            self.ptr = name

        def __call__(self, *given, shared_mem):
            assert shared_mem <= module.most_shared.get(self.ptr, 48 * 1024)
            module.launched.append((self.ptr, *given))

    device = types.SimpleNamespace(id=0)
    runtime = types.SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceCount=lambda: 1,
        driverGetVersion=lambda: 13_000,
        runtimeGetVersion=lambda: 13_020,
        memGetInfo=lambda: (2 * 10**9, 80 * 10**9),
        CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {}),
    )

    def current():
        device.compute_capability = module.capability
        return device

    module.cuda = types.ModuleType("cupy.cuda")
    module.cuda.Device, module.cuda.runtime = current, runtime
    function = types.ModuleType("cupy.cuda.function")
    function.Module = Module
    driver, api = types.ModuleType("driver"), types.ModuleType("api")
    api.driver = driver
    driver.funcSetAttribute = lambda kernel, what, value: module.most_shared.update({kernel: value})
    for name, part in (
        ("cupy", module), ("cupy.cuda", module.cuda), ("cupy.cuda.function", function),
        *((name, types.ModuleType(name)) for name in ("cupy_backends", "cupy_backends.cuda")),
        ("cupy_backends.cuda.api", api), ("cupy_backends.cuda.api.driver", driver),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, part)
    return module


def test_importing_and_registering_needs_no_cupy_and_compiles_nothing():
    code = (
        "import sys, tinyplm.kernels.softmax as s; "
        "print([v.name for v in s.softmax_forward.variants], 'cupy' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'cuda'" in said.stdout
    assert "False" in said.stdout


def test_code_is_kept_and_not_compiled_again(compiler):
    assert cuda.cubin("gelu", "sm_80") == b"code for sm_80"
    assert cuda.cubin("gelu", "sm_80") == b"code for sm_80"
    assert compiler == ["sm_80"]
    assert cuda.cubin("gelu", "sm_90a") == b"code for sm_90a"
    assert cuda.cubin("adam", "sm_80") == b"code for sm_80"
    assert compiler == ["sm_80", "sm_90a", "sm_80"]


def test_another_text_or_compiler_is_another_code(compiler, monkeypatch):
    cuda.cubin("gelu", "sm_80")
    text = cuda.source("gelu")
    monkeypatch.setattr(cuda, "source", lambda file: text + "// changed")
    cuda.cubin("gelu", "sm_80")
    known = next(compilers.found())
    newer = compilers.Compiler("a compiler 1.1", known.compile)
    monkeypatch.setattr(compilers, "found", lambda: iter([newer]))
    compilers.best.cache_clear()
    cuda.cubin("gelu", "sm_80")
    assert compiler == ["sm_80"] * 3


def test_a_damaged_file_is_compiled_anew_and_a_folder_that_cannot_be_written_is_no_matter(
    compiler, tmp_path, monkeypatch
):
    cuda.cubin("gelu", "sm_80")
    (kept,) = (tmp_path / "tinyplm" / "cuda").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert cuda.cubin("gelu", "sm_80") == b"code for sm_80"
    assert compiler == ["sm_80"] * 2
    (tmp_path / "file").write_text("", encoding="utf-8")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    assert cuda.cubin("gelu", "sm_80") == b"code for sm_80"
    assert compiler == ["sm_80"] * 3


def test_a_launch_passes_numbers_by_their_width_and_loads_a_file_once(compiler, cupy):
    x = np.zeros(3, np.float32)
    for _ in range(2):
        cuda.launch("gelu", "gelu_forward_float32", 5, 256, x, None, 7, True, 0.5, np.uint32(3))
    assert cupy.loaded == [b"code for sm_90a"]
    (name, grid, block, passed), again = cupy.launched
    assert (name, grid, block) == ("gelu_forward_float32", (5,), (256,)) == again[:3]
    kinds = [np.ndarray, np.uintp, np.int64, np.int64, np.float32, np.uint32]
    assert [type(a) for a in passed] == kinds
    assert passed[0] is x
    assert passed[1:] == (0, 7, 1, 0.5, 3)


def test_a_kernel_is_let_have_the_most_shared_memory_that_it_was_launched_with(compiler, cupy):
    for shared in (0, 48 * 1024, 100_000, 60_000, 100_000, 200_000, 48 * 1024 + 1):
        cuda.launch("gelu", "gelu_forward_float32", 1, 256, shared=shared)
    assert len(cupy.launched) == 7
    assert cupy.most_shared == {"gelu_forward_float32": 200_000}


def test_nothing_is_launched_for_no_blocks():
    cuda.launch("gelu", "gelu_forward_float32", 0, 256)


@pytest.mark.parametrize(
    ("capability", "arch"), [("80", "sm_80"), ("89", "sm_89"), ("90", "sm_90a"), ("120", "sm_120")]
)
def test_code_is_for_the_card_in_use(cupy, capability, arch):
    cupy.capability = capability
    assert cuda.architecture() == arch


def test_an_old_card_is_told_apart_and_left_to_the_definitions(cupy, compiler):
    cupy.capability = "75"
    with pytest.raises(DeviceError, match=r"capability 7\.5.*need 8\.0"):
        cuda.architecture()
    with pytest.warns(TinyplmWarning, match=r"7\.5.*plain array code"):
        assert not cuda.usable()
    assert not cuda.usable()  # without saying it again


@pytest.fixture
def supports(monkeypatch):
    """Sets the CUDA that the driver supports; no driver at first."""
    found = []
    monkeypatch.setattr(backend, "driver_version", lambda: found[-1] if found else None)
    monkeypatch.setattr(compilers, "driver_version", lambda: found[-1] if found else None)
    monkeypatch.setattr(backend, "cupy_packages", lambda: ["cupy-cuda13x 14.2.0"])
    return found.append


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (None, r"no NVIDIA driver either.*pip install"),
        ((11, 8), r"CUDA 11\.8: update it for CUDA 12"),
        ((12, 4), r'CUDA 12\.4: pip install "tinyplm\[cuda12\]"'),
        ((13, 0), r'CUDA 13\.0: pip install "tinyplm\[cuda13\]"'),
    ],
)
def test_without_cupy_the_message_says_what_to_install(monkeypatch, supports, version, said):
    monkeypatch.setitem(sys.modules, "cupy", None)
    supports(version)
    with pytest.raises(MissingExtraError, match=rf"not installed\. .*{said}.*--device cpu"):
        cuda.architecture()


def test_a_cupy_that_cannot_be_imported_is_told_apart(monkeypatch, tmp_path, supports):
    (tmp_path / "cupy").mkdir()
    text = "raise ImportError('libsomething.so.12 is not here')"
    (tmp_path / "cupy" / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(MissingExtraError, match=r"cannot be imported \(libsomething"):
        cuda.architecture()


@pytest.mark.parametrize(
    ("runtime", "version", "packages", "said"),
    [
        (0, None, 1, r"no NVIDIA driver, or a container"),
        (12_040, (12, 4), 1, r"for CUDA 13.*supports CUDA 12:.*uninstall cupy-cuda13x.*\[cuda12\]"),
        (13_000, (13, 0), 1, r"CUDA_VISIBLE_DEVICES"),
        (13_000, (13, 0), 2, r"are both installed: pip uninstall both.*\[cuda13\]"),
    ],
)
def test_why_no_card_answers_is_said(cupy, monkeypatch, supports, runtime, version, packages, said):
    def none():
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorSomething")

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", none)
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: runtime)
    monkeypatch.setattr(
        backend, "cupy_packages", lambda: ["cupy-cuda12x", "cupy-cuda13x"][:packages]
    )
    supports(version)
    expected = rf"no GPU answered \(cudaErrorSomething\)\. .*{said}.*--device cpu"
    with pytest.raises(MissingExtraError, match=expected):
        cuda.architecture()


def test_without_a_compiler_the_message_says_what_brings_it(cupy, monkeypatch):
    monkeypatch.setattr(compilers, "found", lambda: iter(()))
    for ask in (compilers.best, cuda.usable):
        with pytest.raises(MissingExtraError, match=r"NVRTC.*pip install .cupy-cuda13x\[ctk\]"):
            ask()


@pytest.mark.parametrize(("major", "fits"), [(0, True), (12, True), (13, False)])
def test_a_compiler_of_a_newer_cuda_than_the_driver_is_refused(
    cupy, supports, monkeypatch, major, fits
):
    found = compilers.Compiler("NVRTC", None, major)
    monkeypatch.setattr(compilers, "found", lambda: iter([found]))
    supports((12, 8))
    if fits:
        assert compilers.best() is found
        return
    with pytest.raises(
        MissingExtraError, match=r"CUDA 13.* supports CUDA 12\.8.*cupy-cuda12x\[ctk\]"
    ):
        cuda.usable()


def test_numba_for_cards_is_missed_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba.cuda", None)
    monkeypatch.setitem(sys.modules, "tinyplm.kernels.numba_cuda.matmul", None)
    with KERNELS["product"].using("numba-cuda"):
        variant = next(v for v in KERNELS["product"].variants if v.name == "numba-cuda")
        with pytest.raises(MissingExtraError, match=r"its package for CUDA.*pip install"):
            variant.build()


def test_a_compiler_that_can_be_had_says_which_cuda_it_is_of():
    for found in compilers.found():
        assert found.major >= 12


def test_a_card_and_a_compiler_are_usable(cupy, compiler):
    assert cuda.usable()


def test_no_room_is_told_with_numbers(cupy, monkeypatch):
    def full(shape, dtype):
        raise MemoryError

    cupy.empty = cupy.zeros = full
    monkeypatch.setattr(cuda, "namespace", lambda _: cupy)
    like = np.zeros(1, np.float32)
    with pytest.raises(DeviceMemoryError, match=r"4\.00 GB .*2\.00 GB of 80\.00 GB are free"):
        cuda.empty(like, (10**6, 1000))


def test_rows_get_the_shape_that_fits_them(monkeypatch):
    monkeypatch.setattr(cuda, "address", lambda a: a.ctypes.data)
    x = np.zeros(64, np.float32)
    x = x[(-x.ctypes.data % 16) // 4 :]
    names = {w: cuda.rows(w, x).name for w in (1, 4, 768, 1024, 1028, 8192, 8196, 1023, 1025)}
    assert names == {
        1: "narrow", 4: "warp", 768: "warp", 1024: "warp", 1028: "block", 8192: "block",
        8196: "wide", 1023: "narrow", 1025: "any",
    }  # fmt: skip
    assert cuda.rows(768, None, x, x[1:]).name == "narrow"
    assert cuda.rows(772, x.astype(np.float16)).name == "narrow"
