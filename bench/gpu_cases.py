"""What is timed on a card: cases with their operations, bytes and predictions, on random data that no cache holds.

A case says before it runs what it must take: its operations over the best product's rate and its bytes over the copy's
rate; the larger time is the floor. `predicted` is what the design expected before anybody had measured anything.
"""

import gc
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tinyplm.kernels

from . import gpu_timing
from .gpu_questions import device
from .gpu_timing import Card, Way
from .gpu_worker import Record, State, said

PRODUCT_RATE, COPY_RATE = 790e12, 4.3e12
"""Operations of the best bfloat16 product and bytes of a copy per second that predictions stand on."""
SINGLE_RATE = 50e12
"""The same of float32 products."""
CACHED = 180 << 20
"""Bytes of all input sets together: three times the cache of an H200."""
MOST_SETS = 64
BLOCK = (1 << 24) - 3
"""Random values that arrays are filled with, from a place of its own each; no multiple of any row."""
LIMITS = {"bfloat16": 3e-3, "float16": 5e-4, "float32": 1e-5}
"""Largest relative errors (Frobenius norms), by what a result is stored as; one rounding is half of it or less."""

BETWEEN = {"layer_norm_forward", "rms_norm_forward", "linear_cross_entropy"}
"""Kernels that go on from what they have stored in half precision."""

COMPILED = {"compiled", "flex"}
"""Variants of peers that take long to compile."""

Seconds = tuple[float, float]


def dtype_of(name: str) -> np.dtype[Any]:
    """Of NumPy or ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def is_array(a: Any) -> bool:
    """Whether it is an array of the card's or of NumPy, as opposed to a number or settings."""
    return hasattr(a, "dtype") and hasattr(a, "strides")


@dataclass
class Work:
    """A case made ready.

    Attributes:
        ways: ours first.
        error: of results on set 0, against float64, as a share of what is allowed; the largest of all. NaN is wrong.
        more: fields of our records.
    """

    ways: list[Way]
    error: Callable[[tuple[Any, ...]], float]
    more: Record = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to time.

    Attributes:
        family: that the command line names.
        what: is computed.
        shapes: of it.
        dtype: of its inputs.
        flops: operations.
        moved: bytes that must be read and written.
        build: makes it ready.
        predicted: seconds, from and to; None where nothing was predicted.
        source: where the prediction comes from.
        priority: those of 1 come first.
        seconds: that timing it takes about.
        limit: seconds after which it is lost.
        quick: part of a quick run.
        compiles: peers compile much for it, which can be done before.
        function: that a process of the card calls with its name, to time it.
        warming: the same, to let peers compile.
        files: of device code that it launches beside those of `cuda.FILES`: told, or launched at a small size.
    """

    family: str
    what: str
    shapes: str
    dtype: str
    flops: float
    moved: float
    build: Callable[["Ground"], Work]
    predicted: Seconds | None = None
    source: str = ""
    priority: int = 2
    seconds: float = 5.0
    limit: float = 90.0
    quick: bool = False
    compiles: bool = False
    function: str = "bench.gpu_cases:timed"
    warming: str = "bench.gpu_cases:warmed"
    files: Callable[["Ground"], Iterable[str]] | None = None

    @property
    def name(self) -> str:
        """Of its own."""
        return f"{self.what} {self.shapes} {self.dtype}"

    def floor(self) -> float:
        """Seconds that it takes at least, at the rates that predictions stand on."""
        rate = SINGLE_RATE if self.dtype == "float32" else PRODUCT_RATE
        return max(self.flops / rate, self.moved / COPY_RATE)

    def about(self) -> Record:
        """For its records."""
        names = ("family", "what", "shapes", "dtype", "flops", "moved", "predicted", "source")
        return {name: getattr(self, name) for name in names}


@dataclass
class Ground:
    """What cases are built on: the card's library, its data, the peers that are here.

    Attributes:
        xp: CuPy, or what stands for it.
        card: to time with.
        rng: of the data; it is seeded anew for every run.
        peers: names of the other frameworks that are wanted and here.
        forced: time every plan of ours, not only the chosen one.
    """

    xp: Any
    card: Card
    rng: np.random.Generator
    peers: Sequence[str] = ()
    forced: bool = False
    _block: Any = None
    _cast: dict[str, Any] = field(default_factory=dict)

    def normal(self, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Any:
        """Random normal values; for large arrays a block of them again and again, from a random place on."""
        n = math.prod(shape)
        if n <= BLOCK // 8:
            values = self.rng.standard_normal(n, np.float32) * np.float32(scale)
            return self.xp.asarray(values.astype(dtype_of(dtype))).reshape(shape)
        block = self._values(dtype, scale)
        out = self.xp.empty(n, dtype_of(dtype))
        begin, at = int(self.rng.integers(block.size)), 0
        while at < n:
            size = min(n - at, block.size - begin)
            self.xp.copyto(out[at : at + size], block[begin : begin + size])
            begin, at = 0, at + size
        return out.reshape(shape)

    def _values(self, dtype: str, scale: float) -> Any:
        key = f"{dtype} {scale}"
        if key not in self._cast:
            if self._block is None:
                self._block = self.rng.standard_normal(BLOCK, np.float32)
            values = (self._block * np.float32(scale)).astype(dtype_of(dtype))
            self._cast[key] = self.xp.asarray(values)
        return self._cast[key]

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Any:
        """Random whole numbers below high, on the card."""
        return self.xp.asarray(self.rng.integers(low, high, shape))

    def sets(self, size: float, make: Callable[[], Any]) -> list[Any]:
        """So many sets of inputs of this size in bytes that the cache does not hold them."""
        return [make() for _ in range(max(1, min(MOST_SETS, math.ceil(CACHED / max(size, 1)))))]

    def graph(self, run: Callable[[int], Any], calls: int) -> Callable[[], None]:
        """For ways of CuPy and of ours."""
        return self.card.graph(run, calls)

    def free(self) -> None:
        """Give memory back that nobody uses."""
        gc.collect()
        self.xp.get_default_memory_pool().free_all_blocks()
        if "torch" in self.peers:
            import torch

            torch.compiler.reset()  # else the ninth shape of one function is refused
            torch.cuda.empty_cache()


def every_kernel() -> None:
    """Have all kernels and variants registered."""
    for module in pkgutil.iter_modules(tinyplm.kernels.__path__):
        importlib.import_module(f"tinyplm.kernels.{module.name}")


def ground_of(state: State) -> Ground:
    """That of the process."""
    if "ground" not in state.kept:
        from . import gpu_peers

        every_kernel()
        xp, settings = device(state), state.settings
        rng = np.random.default_rng(settings.get("seed"))
        peers = gpu_peers.found() if settings.get("peers", True) else ()
        state.kept["ground"] = Ground(xp, Card(xp), rng, peers, bool(settings.get("forced")))
    return state.kept["ground"]


def cases(settings: dict[str, Any]) -> list[Case]:
    """All that is to be timed with these settings, the most important first."""
    from . import gpu_attention, gpu_matmul, gpu_memory, gpu_steps

    found: list[Case] = []
    for family in (gpu_matmul, gpu_attention, gpu_steps, gpu_memory):
        found += family.cases(settings)
    wanted = settings.get("kernels") or []
    if wanted:
        found = [c for c in found if c.family in wanted or c.what.split()[0] in wanted]
    if settings.get("quick"):
        found = [c for c in found if c.quick]
    return sorted(found, key=lambda c: c.priority)


def timed(state: State, name: str) -> Iterator[Record]:
    """Check the ways of a case and time those that are right."""
    ground = ground_of(state)
    case = next(c for c in cases(state.settings) if c.name == name)
    try:
        yield from _timed(ground, case)
    finally:
        ground.free()


def warmed(state: State, name: str) -> Iterator[Record]:
    """Let peers compile what a case needs of them, which is then on the disk for other processes."""
    ground = ground_of(state)
    case = next(c for c in cases(state.settings) if c.name == name)
    try:
        for way in case.build(ground).ways:
            if way.variant in COMPILED:
                try:
                    way.run(0)
                    ground.card.synchronize()
                except Exception as problem:
                    yield {"what": case.what, "variant": way.variant, "note": said(problem)}
    finally:
        ground.free()


def _timed(ground: Ground, case: Case) -> Iterator[Record]:
    """Ours is timed alone as soon as it is right, so that nothing is lost if a peer loses the process."""
    work = case.build(ground)
    fine: list[Way] = []
    checked: dict[str, dict[str, Any]] = {}
    heavy, peers = case.flops > 1e12, any(way.library != "ours" for way in work.ways)
    for way in work.ways:
        about = case.about() | {"library": way.library, "variant": way.variant}
        about |= work.more if way.library == "ours" else {}
        try:
            error = _error(ground, work, way)
        except Exception as problem:
            yield about | {"failed": said(problem)}
            if way.library == "ours":
                _still_there(ground, problem)
            continue
        # Others may round more often than ours: they are only asked to compute the same thing.
        if not error <= (1 if way.library == "ours" else 5):
            yield about | {"wrong": error}
            continue
        fine.append(way)
        checked[way.name] = about | {"error": error}
        if way.library == "ours" and peers:
            for _, times in gpu_timing.race(ground.card, [way], rounds=1, heavy=heavy):
                yield checked[way.name] | times.described() | {"alone": True}
    failures: list[Record] = []

    def failed(way: Way, error: Exception) -> None:
        failures.append(checked[way.name] | {"failed": said(error)})
        _still_there(ground, error)

    for way, times in gpu_timing.race(ground.card, fine, heavy=heavy, failed=failed):
        yield checked[way.name] | times.described()
    yield from failures


def _error(ground: Ground, work: Work, way: Way) -> float:
    if way.before is not None:
        way.before(0)
    made = way.run(0)
    (way.finish or (lambda _: None))(made)
    ground.card.synchronize()
    arrays = way.read(made) if way.read else made if isinstance(made, tuple) else (made,)
    return work.error(arrays)


def _still_there(ground: Ground, error: Exception) -> None:
    """Go on only if the card answers."""
    try:
        ground.card.synchronize()
    except Exception:
        raise error from None


def nans(xp: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """An array of NaN of any type, by its bits."""
    kind = dtype_of(dtype)
    return xp.full(math.prod(shape) * kind.itemsize, 0xFF, np.uint8).view(kind).reshape(shape)


def wide(xp: Any, a: Any) -> Any:
    """As float64, where it lies; bfloat16 by its bits, which ask nothing of the library."""
    if a.dtype.name != "bfloat16" or xp is np:
        return a.astype(np.float64)
    bits = a.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).astype(np.float64)


def some(xp: Any, a: Any, rows: Any) -> Any:
    """Those rows, as float64."""
    if a.dtype.itemsize == 2:
        return wide(xp, a.view(np.uint16)[rows].view(a.dtype))
    return wide(xp, a[rows])


def relative(xp: Any, found: Any, exact: Any) -> float:
    """Frobenius norm of the error over that of the exact result in float64; NaN if a value is missing."""
    exact = xp.asarray(exact)
    off = wide(xp, found) - exact
    size = float((exact * exact).sum())
    return math.sqrt(float((off * off).sum()) / size) if size else float(abs(off).max())


def allowed(kernel: str, result: str, given: str) -> float:
    """Relative error of a kernel's result that is stored so, of what is given so.

    What is rounded twice may be twice as far off, and so may be what is computed of what was rounded.
    """
    limit = LIMITS.get(result, LIMITS["float32"])
    return 2 * max(limit, LIMITS.get(given, 0.0)) if kernel in BETWEEN else limit


def all_finite(xp: Any, array: Any) -> bool:
    """Whether nothing is NaN or infinite, by the bits: no float64 copy of a large array."""
    bits = {2: np.uint16, 4: np.uint32}.get(array.dtype.itemsize)
    if bits is None or not array.flags.c_contiguous:
        return bool(xp.isfinite(array.astype(np.float32)).all())
    ones = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}[array.dtype.name]
    found = array.view(bits)
    return not bool(((found & bits(ones)) == bits(ones)).any())
