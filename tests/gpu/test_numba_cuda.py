"""The readable kernels for GPUs, in Numba's simulator: a process of its own, as Numba must not have been imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numba_cuda_checks
import pytest

pytestmark = pytest.mark.device

pytest.importorskip("numba", reason="comes with the extra 'fast'")

NAMES = list(numba_cuda_checks.checks(numba_cuda_checks.Simulator()))


@pytest.fixture(scope="module")
def outcomes():
    """What each check found in the simulator."""
    program = Path(numba_cuda_checks.__file__)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", program],  # of NumPy's overflows, which GPUs do not mention
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(program.parents[2])},
        capture_output=True, text=True, encoding="utf-8", timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_check_was_run(outcomes):
    assert list(outcomes) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_in_the_simulator_a_kernel_is_as_accurate_as_its_definition(outcomes, name):
    assert outcomes[name] == "", outcomes[name]
