"""Every file of device code compiles for both architectures, and what the compiler says of each kernel."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tinyplm.errors import DeviceError, MissingExtraError
from tinyplm.kernels import cuda

pytestmark = pytest.mark.device

ARCHITECTURES = ["sm_90a", "sm_80"]
ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
    re.S,
)
REGISTERS = {
    r"norm_pullback_\w+_(warp|block)": 240,  # rows of g, x and what is due, gain, two sums of each column
    r"norm_forward_\w+_(warp|block)": 128,
    r"\w+_(warp|block)": 96,
    r"\w+": 64,
}
"""The most that kernels of these names may have, the first that fits; 32 values of a row are 32 of them."""

SHARED = {"norm_finish": 32 * 33 * 4, "sort_move": 257 * 4, "sort_scan": 4096, "sort_count": 1024}
"""Bytes of a kernel's tables, by the beginning of its name; elsewhere there are sums of warps only."""


def the_compiler():
    try:
        return cuda.compiler()
    except MissingExtraError as error:
        pytest.skip(str(error))


def threads_of(name):
    """Threads of a block, as the launches have it."""
    if name.startswith("cross_entropy"):
        return 512
    if name.startswith(("norm_finish", "sort_scan")):
        return 1024
    return 32 if name.startswith("sort_") else cuda.THREADS


@pytest.fixture(scope="module")
def compiled():
    """What became of each file for each architecture; two at a time, as compilers are processes of their own."""
    compiler = the_compiler()
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            (file, arch): pool.submit(compiler.compile, cuda.source(file), arch)
            for file in cuda.FILES
            for arch in ARCHITECTURES
        }
        return {key: job.result() for key, job in jobs.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", cuda.FILES)
def test_a_file_compiles_without_spills_or_warnings(compiled, file, arch):
    made = compiled[file, arch]
    assert made.cubin[:4] == b"\x7fELF"
    assert not re.search(r"warning|C75\d\d|error", made.log), made.log[:2000]
    entries = ENTRY.findall(made.log)
    assert len(entries) >= 3
    for name, found_arch, stack, stores, loads, registers, rest in entries:
        assert found_arch == arch
        assert (name, stack, stores, loads) == (name, "0", "0", "0")
        budget = next(most for pattern, most in REGISTERS.items() if re.fullmatch(pattern, name))
        assert int(registers) <= budget, f"{name}: {registers} registers"
        shared = sum(int(size) for size in re.findall(r"(\d+) bytes smem", rest))
        expected = next((s for start, s in SHARED.items() if name.startswith(start)), 128)
        assert shared <= expected, f"{name}: {shared} bytes of shared memory"
        per_thread = -(-int(registers) // 8) * 8  # they are given out by eights
        assert threads_of(name) * per_thread <= 65_536, f"{name} would not start"


def test_threads_are_those_that_kernels_are_bound_to():
    """A block of more threads than a kernel was compiled for is refused by the driver."""
    bounds = {"THREADS": cuda.THREADS, "LANES": 512}
    for file in cuda.FILES:
        text = (cuda.FOLDER / f"{file}.cu").read_text(encoding="utf-8")
        for bound, name in re.findall(r"__global__ void __launch_bounds__\((\w+)\)\s+(\w+)", text):
            prefix = "gelu" if name == "kernel" else name  # a macro's parameter there
            assert threads_of(prefix) == int(bounds.get(bound, bound)), name
        assert text.count("__global__") == text.count("__launch_bounds__")
        assert "#include" not in text


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    """The instructions of each kernel before ptxas, by name."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on the PATH")
    folder = tmp_path_factory.mktemp("ptx")

    def text_of(file):
        given, made = folder / f"{file}.cu", folder / f"{file}.ptx"
        given.write_text(cuda.source(file), encoding="utf-8")
        command = [nvcc, cuda.STANDARD, "-arch=sm_90a", "-ptx", "-o", made, given]
        subprocess.run(command, check=True, capture_output=True)
        return made.read_text(encoding="utf-8")

    with ThreadPoolExecutor(2) as pool:
        parts = [part for t in pool.map(text_of, cuda.FILES) for part in t.split(".entry ")[1:]]
    return {re.match(r"\w+", part).group(): part for part in parts}


ONE_BY_ONE = re.compile(
    r"\w+_(narrow|any|single)|copy_rows_[24]|sort_\w+|join_rows_\w+|norm_finish_\w+|add_up"
)


def test_kernels_for_vectors_read_and_write_sixteen_bytes_at_once(ptx):
    for name, text in ptx.items():
        loads, stores = (len(re.findall(rf"{op}\.global\.v4\.u32", text)) for op in ("ld", "st"))
        if ONE_BY_ONE.fullmatch(name):
            assert not loads + stores, name
            continue
        assert loads, name
        if not name.startswith(("squares_", "cross_entropy_forward_")):
            assert stores, name
        if re.fullmatch(r"\w+float16_(warp|block|wide|groups)", name):
            assert not re.search(r"(ld|st)\.global\.[bu]16", text), f"{name} has single values"


def test_a_row_that_is_held_is_asked_for_without_a_branch_between(ptx):
    """From one load to the next of a row there is no label and no jump."""
    for name, text in ptx.items():
        if re.fullmatch(r"(softmax|norm)_forward_\w+_(warp|block)", name):
            groups = 8 if "_float32_" in name else 4
            parts = re.split(r"^\$L__\w+:|\bbra\b", text, flags=re.M)
            asked = max(len(re.findall(r"@present ld\.global", part)) for part in parts)
            assert asked >= groups, name


def test_nothing_is_computed_in_double_by_accident_and_no_float_is_added_atomically(ptx):
    for name, text in ptx.items():
        if not name.startswith(("squares_", "add_up")):
            assert ".f64" not in text, name
        assert not re.search(r"(atom|red)\.\S*\.f(16|32|64)", text), name
        assert ".local" not in text, name


def test_the_instructions_are_those_that_were_meant(tmp_path):
    """In the machine code itself, where a disassembler is installed."""
    tool = shutil.which("nvdisasm")
    if tool is None:
        pytest.skip("no nvdisasm on the PATH")
    for file in cuda.FILES:
        path = tmp_path / f"{file}.cubin"
        path.write_bytes(the_compiler().compile(cuda.source(file), "sm_90a").cubin)
        said = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
        assert not re.search(r"\b(LDL|STL|HMMA|HGMMA)\b", said), file
        assert re.search(r"\bLDG\.E\.128\b", said), file


def test_a_fault_is_told_in_the_compilers_words():
    with pytest.raises(DeviceError, match="sm_80") as caught:
        the_compiler().compile("__global__ void broken() { nonsense; }", "sm_80")
    assert "nonsense" in str(caught.value)
