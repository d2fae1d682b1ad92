"""The doctor says what is true of this machine, and nothing where it cannot know."""

import json
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tinyplm.kernels.compilers import Compiler
from tinyplm.recipes import doctor


def test_everything_can_be_written_as_json():
    found = doctor.doctor()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["numpy"] == np.__version__
    assert found["matmul_gflops"] > 0
    assert found["copy_gigabytes_per_second"] > 0


def test_cores_and_memory_are_no_more_than_the_machine_has():
    assert 1 <= doctor.cores() <= os.cpu_count()
    assert doctor.memory() is None or doctor.memory() > 1e8


@pytest.mark.parametrize(
    ("major", "extra"), [(11, None), (12, "cuda12"), (13, "cuda13"), (14, "cuda13")]
)
def test_the_extra_fits_the_driver(major, extra):
    assert doctor.fitting_extra(major) == extra


NOTHING = {"driver": None, "cards": [], "capabilities": [], "extra": None}


def test_a_machine_without_a_driver_has_no_card(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    assert doctor.cuda() == NOTHING
    assert doctor.blas()["threads"] is None


class Driver:
    """As much of it as is asked."""

    version, fails = 13_010, 0

    def __init__(self, name):
        pass

    def cuInit(self, flags):  # noqa: N802  the driver's names
        return self.fails

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device, number):  # noqa: N802
        return 0

    def cuDeviceGetName(self, name, length, device):  # noqa: N802
        name.value = b"a card"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_a_driver_is_asked_for_its_version_and_cards(monkeypatch):
    monkeypatch.setattr(doctor.ctypes, "CDLL", Driver)
    found = {"driver": "13.1", "cards": ["a card"], "capabilities": ["9.0"], "extra": "cuda13"}
    assert doctor.cuda() == found
    monkeypatch.setattr(Driver, "fails", 100)
    assert doctor.cuda() == found | {"cards": [], "capabilities": []}


FITS = {"driver": "12.4", "cards": ["a card"], "capabilities": ["9.0"], "extra": "cuda12"}
NEWER = FITS | {"driver": "13.0", "extra": "cuda13"}
NVRTC12, NVRTC13 = (Compiler(f"NVRTC {major}.0", None, major) for major in (12, 13))


@pytest.mark.parametrize(
    ("found", "packages", "compilers", "said"),
    [
        (FITS, ["cupy-cuda12x 14.2.0"], [NVRTC12], []),
        (NEWER, ["cupy-cuda13x 14.2.0"], [NVRTC13, NVRTC12], []),
        (NEWER, ["cupy-cuda12x 14.2.0"], [NVRTC12], []),
        (NEWER, ["cupy 14.2.0"], [NVRTC13], []),
        (NOTHING, [], [], ["no NVIDIA driver"]),
        (FITS | {"driver": "11.8", "extra": None}, [], [NVRTC12], ["update it for CUDA 12"]),
        (
            FITS | {"cards": [], "capabilities": []},
            ["cupy-cuda12x 14"],
            [NVRTC12],
            ["sees no card"],
        ),
        (
            FITS | {"capabilities": ["7.5"]},
            ["cupy-cuda12x 14"],
            [NVRTC12],
            ["capability 8.0 or la"],
        ),
        (FITS | {"capabilities": ["7.5", "8.0"]}, ["cupy-cuda12x 14"], [NVRTC12], []),
        (FITS, [], [NVRTC12], ['12.4: pip install "tinyplm[cuda12]"']),
        (
            FITS,
            ["cupy-cuda12x 14", "cupy-cuda13x 14"],
            [NVRTC12],
            ["both installed: pip uninstall"],
        ),
        (
            FITS,
            ["cupy-cuda13x 14.2.0"],
            [NVRTC12],
            ["pip uninstall cupy-cuda13x, then pip install"],
        ),
        (FITS, ["cupy-cuda12x 14"], [], ['pip install "cupy-cuda12x[ctk]"']),
        (FITS, ["cupy-cuda12x 14"], [NVRTC13], ["pip uninstall nvidia-cuda-nvrtc"]),
        (FITS, [], [], ["no CuPy", "no compiler"]),
    ],
)
def test_what_is_in_the_way_of_a_card_is_said_with_what_to_do(found, packages, compilers, said):
    sentences = doctor.in_the_way(found, packages, compilers)
    assert len(sentences) == len(said), sentences
    for sentence, part in zip(sentences, said, strict=True):
        assert part in sentence


@pytest.mark.parametrize(
    ("numpy", "count"), [("2.0.2", 1), ("2.1.1", 1), ("2.1.2", 0), ("2.4.6", 0)]
)
def test_a_numpy_with_which_cupy_has_no_bfloat16_is_named(numpy, count):
    sentences = doctor.in_the_way(FITS, ["cupy-cuda12x 14.2.0"], [NVRTC12], numpy)
    assert len(sentences) == count
    assert all("no bfloat16" in s and numpy in s and "tinyplm[cuda12]" in s for s in sentences)


def test_the_extras_of_a_card_want_the_numpy_that_the_doctor_names():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for name in ("cuda12", "cuda13"):
        assert f"numpy>={doctor.NUMPY_OF_BFLOAT16}" in extras[name]
