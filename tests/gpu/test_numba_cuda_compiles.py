"""The readable kernels through Numba's compiler for GPUs, which needs NVVM and no GPU."""

import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.device

numba = pytest.importorskip("numba", reason="comes with the extra 'fast'")

HOPPER, AMPERE = (9, 0), (8, 0)


def kernels():
    """Each kernel with the types that it is compiled for."""
    from numba import boolean, float32

    from tinyplm.kernels.numba_cuda import attention, gelu, matmul, rows

    one, matrix, turned = float32[::1], float32[:, ::1], float32[::1, :]
    three, four, mask = float32[:, :, ::1], float32[:, :, :, :], boolean[:, :, :, :]
    rules = mask, boolean, boolean, float32
    norm = matrix, matrix, one, one, float32, boolean, boolean, *[matrix] * 4
    found = {
        "naive": (matmul.naive_kernel(16), (matrix, turned, one, float32, matrix)),
        "shared": (matmul.shared_kernel(16), (matrix, turned, one, float32, matrix)),
        "registers": (
            matmul.register_kernel(matmul.SIDE, matmul.DEPTH, matmul.EACH),
            (matrix, turned, one, float32, boolean, boolean, matrix),
        ),
        "softmax": (rows.softmax_kernel(128), (matrix, matrix)),
        "softmax_pullback": (rows.softmax_pullback_kernel(128), (matrix, matrix, matrix)),
        "norm": (rows.norm_kernel(128), norm),
        "norm_pullback": (
            rows.norm_pullback_kernel(128),
            (*[matrix] * 5, one, boolean, boolean, matrix),
        ),
        "norm_sums": (rows.norm_sums_kernel(128, 64), (*[matrix] * 4, boolean, three)),
    }
    for body in gelu.BODIES:
        arrays = body.__code__.co_argcount
        found[f"gelu{body.__name__}"] = gelu.compiled(body), (one,) * arrays
    for size in (64, 128):
        sizes = size, attention.WIDTH, attention.rows_of_a_thread(size)
        found[f"attention_{size}"] = (
            attention.forward_kernel(*sizes),
            (four, four, four, *rules, four, three),
        )
        for of_keys in (False, True):
            found[f"attention_pullback_{size}_{of_keys}"] = (
                attention.pullback_kernel(*sizes, of_keys),
                (*[four] * 4, *rules, three, three, four, four),
            )
    return found


@pytest.fixture(scope="module")
def known():
    """The kernels, where Numba finds all that it compiles with."""
    if numba.config.ENABLE_CUDASIM:
        pytest.skip("the simulator compiles nothing")
    try:
        from numba.cuda.cudadrv import nvvm

        nvvm.NVVM()
        return kernels()
    except Exception as error:
        pytest.skip(f"no NVVM, which comes with the extra 'device': {error}")


@pytest.fixture(scope="module")
def compiled(known):
    """Compiles a kernel by name to PTX, for a compute capability."""
    from numba import cuda

    with pytest.MonkeyPatch.context() as patch:
        # Numba compiles a function that a kernel calls for the device it finds, whatever it was asked for.
        device = SimpleNamespace(compute_capability=HOPPER)
        patch.setattr("numba.cuda.dispatcher.get_current_device", lambda: device)

        def to_ptx(name, capability):
            device.compute_capability = capability
            kernel, signature = known[name]
            return cuda.compile(
                kernel.py_func, signature, cc=capability, output="ptx", abi="numba", device=False
            )[0]

        yield to_ptx


def assembled(ptx, arch, folder):
    """What the assembler says of PTX: of nvJitLink as Numba has it, or of the toolkit."""
    try:
        from cuda.core import Linker, LinkerOptions, ObjectCode

        options = LinkerOptions(arch=arch, ptxas_options=["-v"])
        linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
        linker.link("cubin")
        return linker.get_info_log()
    except (ImportError, RuntimeError) as error:
        if shutil.which("ptxas") is None:
            pytest.skip(f"no assembler, which knows registers and shared memory: {error}")
    source = folder / "kernel.ptx"
    source.write_text(ptx, encoding="utf-8")
    command = ["ptxas", "-v", f"-arch={arch}", source, "-o", folder / "cubin"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if "Unsupported .version" in result.stderr:
        pytest.skip("ptxas is older than NVVM")
    assert result.returncode == 0, result.stderr
    return result.stderr


ON_HOPPER = ["naive", "shared", "registers", "softmax", "softmax_pullback"]
ON_HOPPER += ["norm", "norm_pullback", "norm_sums"]
ON_HOPPER += ["gelu_exact", "gelu_exact_pullback", "gelu_by_tanh", "gelu_by_tanh_pullback"]
ON_HOPPER += ["attention_64", "attention_pullback_64_False", "attention_pullback_64_True"]
ON_HOPPER += ["attention_128", "attention_pullback_128_False", "attention_pullback_128_True"]
ON_AMPERE = ["shared", "registers", "softmax", "attention_64"]
REGISTERS = {"registers": 168, "attention_pullback": 255, "attention": 255, "": 96}
"""At most, by the beginning of a name; attention of wide heads has as many as a thread can have."""

STACK = {"registers": 256, "attention_pullback": 128, "": 0}
"""Bytes of a thread's own memory, likewise: sums pass through it once, behind the loop that makes them."""

CASES = [(n, HOPPER) for n in ON_HOPPER] + [(n, AMPERE) for n in ON_AMPERE]


def test_every_kernel_is_compiled(known):
    assert set(known) == set(ON_HOPPER)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "capability"), CASES, ids=str)
def test_a_kernel_compiles_in_float32_and_within_its_registers(
    compiled, name, capability, tmp_path
):
    ptx = compiled(name, capability)
    assert f".target sm_{capability[0]}{capability[1]}" in ptx
    assert ".f64" not in ptx
    said = assembled(ptx, f"sm_{capability[0]}{capability[1]}", tmp_path)
    assert set(re.findall(r"(\d+) bytes spill", said)) == {"0"}, said
    stack = [int(n) for n in re.findall(r"(\d+) bytes stack", said)]
    assert sum(stack) <= next(most for start, most in STACK.items() if name.startswith(start))
    shared = [int(n) for n in re.findall(r"(\d+) bytes smem", said)]
    assert sum(shared) <= 48 << 10
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == 1
    assert registers[0] <= next(most for start, most in REGISTERS.items() if name.startswith(start))
