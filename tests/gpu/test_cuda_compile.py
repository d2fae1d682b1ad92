"""Every file of device code compiles for its architectures, and each kernel is within its row of budgets.py."""

import re
import shutil

import machine_code as codes
import pytest
from budgets import (
    ARCHITECTURES,
    BUDGETS,
    INSTANCES,
    PORTABLE,
    Budget,
    budget,
    faults,
    faults_of_instructions,
)

from tinyplm.errors import DeviceError
from tinyplm.kernels import compilers, cuda

pytestmark = pytest.mark.device

NAMES = [*cuda.FILES, *(f"{name} {made}" for name in INSTANCES for made in INSTANCES[name])]
CASES = [(file, arch) for file in NAMES for arch in ARCHITECTURES.get(file.split(" ")[0], PORTABLE)]
EACH = pytest.mark.parametrize(("file", "arch"), CASES)


@EACH
def test_a_file_compiles_within_its_budgets(machine_code, file, arch):
    made = machine_code(file, arch)
    assert made.cubin[:4] == b"\x7fELF"
    assert not re.search(r"warning|C75\d\d|error", made.log), made.log[:2000]
    assert {found for _, found, *_ in codes.ENTRY.findall(made.log)} == {arch}
    found = {name: faults(kernel, file, arch) for name, kernel in made.kernels.items()}
    assert not any(found.values()), {name: said for name, said in found.items() if said}


@EACH
def test_the_instructions_are_those_that_were_meant(machine_code, file, arch):
    if codes.disassembler() is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    kernels = machine_code(file, arch).kernels
    found = {name: faults_of_instructions(kernel, file) for name, kernel in kernels.items()}
    assert not any(found.values()), {name: said for name, said in found.items() if said}


@pytest.mark.parametrize("file", [*cuda.FILES, *cuda.TEMPLATES])
def test_no_row_is_left_over_and_no_file_is_left_out(machine_code, file):
    cases = [case for case in CASES if case[0].split(" ")[0] == file]
    assert cases, f"{file}.cu is a file of templates: INSTANCES in budgets.py is to say of what"
    used = {id(budget(file, kernel)) for case in cases for kernel in machine_code(*case).kernels}
    over = [pattern for pattern, row in BUDGETS[file].items() if id(row) not in used]
    assert not over, f"no kernel of {file}.cu has these rows: {over}"


def test_a_text_includes_nothing():
    for file in NAMES:
        assert "#include" not in cuda.source(file)


def test_a_fault_is_told_in_the_compilers_words(compiler):
    with pytest.raises(DeviceError, match="sm_80") as caught:
        compiler.compile("__global__ void broken() { nonsense; }", "sm_80")
    assert "nonsense" in str(caught.value)


KERNEL = """
extern "C" __global__ void __launch_bounds__(64) guilty(float *x, int n) {
    __shared__ float table[64];
    float own[40];
    for (int i = 0; i < 40; ++i) own[i] = x[i * n];
    for (int i = 0; i < n; ++i) own[i % 40] += own[n % 40];
    table[threadIdx.x] = own[n % 40];
    __syncthreads();
    atomicAdd(x, (float)((double)table[63 - threadIdx.x] * 1.1));
}
"""


def test_the_checks_notice_what_they_are_for(compiler, tmp_path, monkeypatch):
    """A kernel that does everything wrong is told so, fault by fault."""
    made = compiler.compile(KERNEL, "sm_80")
    path = tmp_path / "guilty.cubin"
    path.write_bytes(made.cubin)
    kernel = codes.kernels(made.cubin, made.log, path)["guilty"]
    assert (kernel.most_threads, kernel.shared) == (64, 256)
    row = Budget(8, 128, shared=128, dynamic=163 * 1024, wanted="LDG.128", unbranched=1)
    monkeypatch.setitem(BUDGETS, "guilty", {r"guilty": row})
    said = "; ".join(faults(kernel, "guilty", "sm_80"))
    for fault in ("8 allowed", "bytes of stack", "launched with 128", "256 bytes of static", "can"):
        assert fault in said
    if codes.disassembler() is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    said = "; ".join(faults_of_instructions(kernel, "guilty"))
    for fault in ("no LDG.128", "(local)", "(float64)", "(atomic)", "without a branch"):
        assert fault in said
    with pytest.raises(AssertionError, match="no row"):
        budget("guilty", "another")


def test_nvcc_compiles_it_too(tmp_path):
    """The way of machines that have a toolkit and no NVRTC."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on the PATH")
    made = codes.compile_file("gelu", cuda.source("gelu"), "sm_90a", tmp_path, compilers.nvcc())
    found = {name: faults(kernel, "gelu", "sm_90a") for name, kernel in made.kernels.items()}
    assert len(found) == 12
    assert not any(found.values()), found
