"""The doctor says what is true of this machine, and nothing where it cannot know."""

import json
import os

import numpy as np
import pytest

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


def test_a_machine_without_a_driver_has_no_card(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    assert doctor.cuda() == {"driver": None, "cards": [], "extra": None}
    assert doctor.blas()["threads"] is None


def test_a_driver_is_asked_for_its_version_and_cards(monkeypatch):
    class Driver:
        def __init__(self, name):
            pass

        def cuInit(self, flags):  # noqa: N802  the driver's names
            return 0

        def cuDriverGetVersion(self, version):  # noqa: N802
            version._obj.value = 13_010
            return 0

        def cuDeviceGetCount(self, count):  # noqa: N802
            count._obj.value = 1
            return 0

        def cuDeviceGet(self, device, number):  # noqa: N802
            return 0

        def cuDeviceGetName(self, name, length, device):  # noqa: N802
            name.value = b"a card"
            return 0

    monkeypatch.setattr(doctor.ctypes, "CDLL", Driver)
    assert doctor.cuda() == {"driver": "13.1", "cards": ["a card"], "extra": "cuda13"}
