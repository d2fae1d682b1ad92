"""What the tests of device code share."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import emulator as emulation
import machine_code as codes
import pytest
import stand_in

from tinyplm.errors import MissingExtraError
from tinyplm.kernels import cuda

SECONDS = pytest.StashKey[dict]()
"""What compiling took, by file and architecture."""


DAYS = 3
"""How long what was compiled is kept."""


@pytest.fixture(scope="session")
def kept(request, tmp_path_factory):
    """A folder for what was compiled, by its text: of pytest's cache, so that later runs find it."""
    cache = getattr(request.config, "cache", None)
    if cache is None:
        return tmp_path_factory.mktemp("device_code")
    folder = cache.mkdir("device_code")
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # a folder, or gone
            if file.stat().st_mtime < time.time() - DAYS * 86_400:
                file.unlink()
    return folder


@pytest.fixture(scope="session")
def built(kept):
    """The device code as plain C++, each file compiled when it is first wanted."""
    if emulation.COMPILER is None:
        pytest.skip("needs g++")
    return emulation.Emulator(kept)


@pytest.fixture(scope="session")
def compiler():
    """The compiler for device code."""
    try:
        return cuda.compiler()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def machine_code(request, compiler, kept):
    """What became of a file for an architecture; two are compiled at a time."""
    seconds = request.config.stash.setdefault(SECONDS, {})
    pool, jobs = ThreadPoolExecutor(2), {}

    def submit(file, arch):
        if (file, arch) not in jobs:
            jobs[file, arch] = pool.submit(codes.compile_file, file, arch, kept, compiler)

    def find(file, arch):
        submit(file, arch)
        found = jobs[file, arch].result()
        seconds[file, arch] = found.seconds
        return found

    for item in request.session.items:  # so that the next is under way while one is looked at
        asked = item.callspec.params if hasattr(item, "callspec") else {}
        if "machine_code" in item.fixturenames and {"file", "arch"} <= set(asked):
            submit(asked["file"], asked["arch"])
    yield find
    pool.shutdown(cancel_futures=True)


def pytest_terminal_summary(terminalreporter, config):
    """How long each file took to compile."""
    for (file, arch), seconds in sorted(config.stash.get(SECONDS, {}).items()):
        took = f"{seconds:.1f} s" if seconds else "kept from an earlier run"
        terminalreporter.write_line(f"compiled {file}.cu for {arch}: {took}")


@pytest.fixture
def card(built, monkeypatch):
    """A stand-in for CuPy, with tinyplm's kernels emulated: `card.cupy`, and what happened; see stand_in_device."""
    yield stand_in.install(monkeypatch, built)
    stand_in.forget()
    stand_in.device.card.check()


@pytest.fixture
def plain_card(monkeypatch):
    """The same without kernels of tinyplm: the definitions compute in the stand-in's plain array code."""
    yield stand_in.install(monkeypatch)
    stand_in.forget()
    stand_in.device.card.check()
