"""What the tests of device code share."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulator as emulation
import machine_code as codes
import numpy as np
import pytest
import stand_in

from tinyplm.errors import DeviceError, MissingExtraError
from tinyplm.kernels import compilers, cuda
from tinyplm.kernels.registry import KERNELS

HERE = Path(__file__).parent
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


def pytest_collection_modifyitems(items):
    """Tests that wait for a compiler come behind the others of this folder, which run meanwhile."""
    places = [i for i, item in enumerate(items) if item.path.parent == HERE]
    here = sorted((items[i] for i in places), key=lambda item: "machine_code" in item.fixturenames)
    for i, item in zip(places, here, strict=True):
        items[i] = item


@pytest.fixture(scope="session", autouse=True)
def compiling(request, kept):
    """Compiles what the tests of this run will ask for, two files at a time, from the first test of this folder on.

    Texts and the compiler are those of now: tests put others in their place for a while.
    """
    wanted = [item for item in request.session.items if "machine_code" in item.fixturenames]
    try:
        by = compilers.best() if wanted else None
    except MissingExtraError as error:
        yield str(error)
        return
    pool, jobs = ThreadPoolExecutor(2), {}

    def job(file, arch):
        if (file, arch) not in jobs:
            text = cuda.source(file)
            jobs[file, arch] = pool.submit(codes.compile_file, file, text, arch, kept, by)
        return jobs[file, arch]

    for item in wanted:
        if hasattr(item, "callspec") and {"file", "arch"} <= set(item.callspec.params):
            job(item.callspec.params["file"], item.callspec.params["arch"])
    yield job
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def compiler():
    """The compiler for device code."""
    try:
        return compilers.best()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def machine_code(request, compiling):
    """What became of a file for an architecture."""
    if isinstance(compiling, str):
        pytest.skip(compiling)
    seconds = request.config.stash.setdefault(SECONDS, {})

    def find(file, arch):
        found = compiling(file, arch).result()
        seconds[file, arch] = found.seconds
        return found

    return find


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


@pytest.fixture
def quick(card, monkeypatch):
    """With products and attention of float32 by the stand-in itself, which is quicker: what is tried is the step."""
    monkeypatch.setattr(stand_in, "PRODUCTS", set())  # they may be captured, as tinyplm's own
    for kernel in KERNELS.values():
        if kernel.definition.__module__.rsplit(".")[-1] in ("matmul", "attention"):
            for variant in kernel.variants:
                if variant.library == "cupy":
                    monkeypatch.setattr(variant, "when", _but_float32(variant.when))
    return card


def _but_float32(when):
    return lambda *given: given[0].dtype != np.float32 and when(*given)


@pytest.fixture(scope="module")
def real_card():
    """Skips where there is no card that kernels can be compiled for."""
    import cupy

    try:
        if not cupy.cuda.is_available():
            pytest.skip("no device")
        cuda.architecture()
    except (DeviceError, MissingExtraError) as error:
        pytest.skip(str(error))


@pytest.fixture
def rooms(real_card, monkeypatch):
    """On a real card new arrays hold NaN, and lie between guards that are checked at the end; what makes them."""
    import cupy

    made = []

    def empty(like, shape, dtype=None, *, zeros=False):
        kind = np.dtype(like.dtype if dtype is None else dtype)
        size = int(np.prod(shape))
        room = cupy.full((size + 2 * emulation.GUARD) * kind.itemsize, 0xFF, np.uint8)
        made.append((room, kind))
        inner = room.view(kind)[emulation.GUARD : emulation.GUARD + size]
        if zeros:
            inner.fill(0)
        return inner.reshape(shape)

    monkeypatch.setattr(cuda, "empty", empty)
    yield empty
    for room, kind in made:
        edge = emulation.GUARD * kind.itemsize
        assert bool((room[:edge] == 0xFF).all() & (room[-edge:] == 0xFF).all())
